"""Turn a plan into bytes and back, for `pickle` and `copy.deepcopy`, which can't copy weights in a kernel's own layout.

Such weights are written as plain tensors, and brought into their layout again when the plan is read. The choice of the
library for each product is kept, so the bytes are meant for machines of one kind.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from seed_fast.ops import pack_codebook
from seed_fast.ops.nearest_code import PackedCodebook


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> tuple[Callable[..., Any], tuple[Tensor]] | Any:
        if isinstance(value, Tensor) and value.is_mkldnn:
            return _in_blocks, (value.to_dense(),)
        if isinstance(value, PackedCodebook):
            return pack_codebook, (value.codebook,)
        return NotImplemented


def _in_blocks(weight: Tensor) -> Tensor:
    blocked: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return blocked


def to_bytes(attributes: dict[str, Any]) -> bytes:
    """Return the attributes of a plan as bytes that `from_bytes` reads."""
    content = io.BytesIO()
    _Pickler(content).dump(attributes)
    return content.getvalue()


def from_bytes(content: bytes) -> dict[str, Any]:
    """Return the attributes that `to_bytes` wrote."""
    attributes: dict[str, Any] = pickle.loads(content)
    return attributes
