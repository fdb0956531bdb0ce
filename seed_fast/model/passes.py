"""The steps of the inference plan between its matrix products: sums with norms, and biases with GELU.

On a GPU each is one pass over memory, by an op of the package (`add_layer_norm`, `bias_gelu`), because such passes are
limited by memory bandwidth there; docs/fast.md estimates what the fusion saves. On a CPU they are torch's own: oneDNN
applies GELU within the product, and the rest takes about one percent of the time. SEED_FAST_FUSED_PASSES overrides the
choice, for measurements and tests.

Shapes: E width of the residual stream, which is float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seed_fast import _env
from seed_fast.ops import add_layer_norm


def fused_on(device: torch.device) -> bool:
    """Return True if the steps between products run as the package's fused ops on this device.

    Raises:
        ValueError: SEED_FAST_FUSED_PASSES is not auto, 1 or 0.
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
    """A sum into the residual stream, and the layer norm of it, which is the input of a product in `dtype`.

    With `post_norm` the norm, not the sum, is the new residual stream.
    """

    def __init__(self, module: nn.LayerNorm, dtype: torch.dtype, *, post_norm: bool = False) -> None:
        super().__init__(module)
        self.dtype, self.post_norm = dtype, post_norm
        self.fused = fused_on(self.weight.device)

    def after(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Add delta to x [..., E] float32, which may be overwritten.

        Returns:
            The new residual stream in float32, and the norm: in `dtype` where no extra pass is needed for it, otherwise
            in float32.
        """
        if self.fused:
            affine = self.weight, self.bias, self.eps
            return add_layer_norm(x.expand_as(delta), delta, *affine, out_dtype=self.dtype, post_norm=self.post_norm)
        if self.post_norm:
            norm = self(x + delta)
            return norm, norm
        x += delta
        return x, self(x)
