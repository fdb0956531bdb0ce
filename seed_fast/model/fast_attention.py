"""Self-attention of the plan: the op, or torch's own kernel where that is faster on this CPU.

In float32 the first plan of such a model on a machine times both, for one image and for several; `calibration` keeps
the answer. Half precision takes the op, for rounding may not depend on a measurement; so does a forced backend.

Shapes: B images, L tokens, H heads, d head width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seed_fast.model import calibration
from seed_fast.model.products import setting
from seed_fast.ops import attention, forced

SEVERAL = 4  # images
BATCHES = {"one": 1, "several": SEVERAL}
SECONDS = 0.15  # per number of images
MARGIN = 1.03  # gain that torch's kernel must have


def torch_attention(q_BLHd: Tensor, k_BLHd: Tensor, v_BLHd: Tensor, *, causal: bool = False) -> Tensor:
    """`attention` by torch's `scaled_dot_product_attention`."""
    q, k, v = (x.transpose(1, 2) for x in (q_BLHd, k_BLHd, v_BLHd))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)


class SelfAttention:
    """Queries, keys and values [B, L, H, d] to [B, L, H, d]."""

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
    """{"one" | "several" images: gain of torch's kernel over the op}; measured if it isn't known."""
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
