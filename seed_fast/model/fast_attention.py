"""Self-attention of the plan: the op `attention`, or torch's own kernel where that is faster on this CPU.

In float32 the first plan of a model on a machine times both, for one image and for several; `calibration` keeps the
answer. Half precision always runs the op, since rounding may not depend on a measurement, and so does a forced backend.

Shapes: B images, L tokens, H heads, d head width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seed_fast.model import calibration
from seed_fast.model.cpu_products import setting
from seed_fast.ops import attention, forced

SEVERAL = 4  # from this number of images on a batch counts as several
BATCHES = {"one": 1, "several": SEVERAL}
SECONDS = 0.15  # time to measure each number of images
MARGIN = 1.03  # torch's kernel is taken if it is faster by this factor


def torch_attention(q_BLHd: Tensor, k_BLHd: Tensor, v_BLHd: Tensor, *, causal: bool = False) -> Tensor:
    """Compute `attention` by torch's `scaled_dot_product_attention`; return [B, L, H, d]."""
    q, k, v = (x.transpose(1, 2) for x in (q_BLHd, k_BLHd, v_BLHd))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)


class SelfAttention:
    """Attention of queries, keys and values [B, L, H, d], by the kernel that is faster here; returns [B, L, H, d]."""

    def __init__(
        self, tokens: int, heads: int, width: int, dtype: torch.dtype, device: torch.device, *, causal: bool = False
    ) -> None:
        self.causal, self.by_torch = causal, (False, False)
        if device.type == "cpu" and dtype == torch.float32:
            gains = _gains(tokens, heads, width, causal)
            self.by_torch = (gains["one"] >= MARGIN, gains["several"] >= MARGIN)

    def __call__(self, q_BLHd: Tensor, k_BLHd: Tensor, v_BLHd: Tensor) -> Tensor:
        if self.by_torch[len(q_BLHd) >= SEVERAL] and not forced():
            return torch_attention(q_BLHd, k_BLHd, v_BLHd, causal=self.causal)
        return attention(q_BLHd, k_BLHd, v_BLHd, causal=self.causal)


def _gains(tokens: int, heads: int, width: int, causal: bool) -> dict[str, float]:
    """Return {"one" or "several" (images): how many times as fast as the op torch's kernel is}; measure if need be."""
    kind = "causal self-attention" if causal else "self-attention"
    return calibration.answer(
        f"{kind} in float32: {tokens} tokens, {heads} heads of {width}",
        partial(_measure, tokens, heads, width, causal),
        _is_answer,
        again=setting() == "measure",
    )


def _is_answer(found: Any) -> bool:
    return all(isinstance(found.get(name), (int, float)) and found[name] > 0 for name in BATCHES)


@torch.no_grad()
def _measure(tokens: int, heads: int, width: int, causal: bool) -> dict[str, Any]:
    found = {}
    for name, images in BATCHES.items():
        qkv = torch.randn(images, tokens, 3, heads, width).unbind(2)
        calls = {"op": partial(attention, *qkv, causal=causal), "torch": partial(torch_attention, *qkv, causal=causal)}
        found[name] = round(calibration.medians(calls, "op", SECONDS)[1]["torch"], 3)
    return found
