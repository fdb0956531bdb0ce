"""The package's ops: one file per op holds its contract. `explain` says which backend would run an op, and why."""

from seed_fast.ops._dispatch import BackendError, backend, backend_table, explain, forced
from seed_fast.ops.add_layer_norm import add_layer_norm
from seed_fast.ops.attention import attention
from seed_fast.ops.bias_gelu import bias_gelu
from seed_fast.ops.nearest_code import PackedCodebook, nearest_code, pack_codebook
from seed_fast.ops.vector_quantize import vector_quantize

__all__ = [
    "BackendError",
    "PackedCodebook",
    "add_layer_norm",
    "attention",
    "backend",
    "backend_table",
    "bias_gelu",
    "explain",
    "forced",
    "nearest_code",
    "pack_codebook",
    "vector_quantize",
]
