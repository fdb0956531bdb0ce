"""What the inference plan does between its matrix products: sums with norms, biases with GELU.

On a GPU each is one pass over memory, by an op of the package (`add_layer_norm`, `bias_gelu`): there such passes are
bound by memory, and docs/fast.md says what fewer of them are worth. On a CPU they are torch's own: there GELU is inside
its product, and the rest takes about one percent. SEED_FAST_FUSED_PASSES chooses, for measurements and tests.

Shapes: E width of the residual stream, which is float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seed_fast import _env
from seed_fast.ops import add_layer_norm


def fused_on(device: torch.device) -> bool:
    """True if passes between products are the package's ops on this device.

    Raises:
        ValueError: SEED_FAST_FUSED_PASSES is none of auto, 1 and 0.
    """
    choice = _env.get("SEED_FAST_FUSED_PASSES")
    if choice not in ("auto", "1", "0"):
        raise ValueError(f"SEED_FAST_FUSED_PASSES: expected auto, 1 or 0, got {choice!r}")
    return device.type == "cuda" if choice == "auto" else choice == "1"


class Norm:
    """Layer norm of a float32 residual stream, in float32."""

    def __init__(self, module: nn.LayerNorm) -> None:
        self.weight, self.bias = module.weight.detach().float(), module.bias.detach().float()
        self.eps = module.eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class AddNorm(Norm):
    """A sum into the residual stream and the norm behind it, which a product in `dtype` reads.

    With `post_norm` the residual stream goes on from the norm.
    """

    def __init__(self, module: nn.LayerNorm, dtype: torch.dtype, *, post_norm: bool = False) -> None:
        super().__init__(module)
        self.dtype, self.post_norm = dtype, post_norm
        self.fused = fused_on(self.weight.device)

    def after(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., E] float32, which may be overwritten, and delta -> (the new residual stream, its norm).

        The norm is in `dtype` where that costs no pass of its own.
        """
        if self.fused:
            affine = self.weight, self.bias, self.eps
            return add_layer_norm(x.expand_as(delta), delta, *affine, out_dtype=self.dtype, post_norm=self.post_norm)
        if self.post_norm:
            norm = self(x + delta)
            return norm, norm
        x += delta
        return x, self(x)
