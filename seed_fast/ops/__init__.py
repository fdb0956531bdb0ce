"""The package's ops. One file per op is its contract; `explain` says which backend would run it, and why."""

from seed_fast.ops._dispatch import BackendError, backend, backend_table, explain
from seed_fast.ops.attention import attention
from seed_fast.ops.nearest_code import PackedCodebook, nearest_code, pack_codebook
from seed_fast.ops.vector_quantize import vector_quantize

__all__ = [
    "BackendError",
    "PackedCodebook",
    "attention",
    "backend",
    "backend_table",
    "explain",
    "nearest_code",
    "pack_codebook",
    "vector_quantize",
]
