"""Matrix products of a training step, computed by the library that is faster on this CPU.

`seed_fast.model.cpu_products` measures which one that is; its choice serves forward and backward passes alike.

Shapes: x [M, K], y [N, K], result [M, N]; `y_NK` may be a transposed view.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seed_fast.model import cpu_products


def _takes(x_MK: Tensor, y_NK: Tensor) -> bool:
    """True if oneDNN is the faster library for x y^T."""
    if x_MK.device.type != "cpu":
        return False
    (rows, summed), columns = x_MK.shape, y_NK.shape[0]
    enabled = torch._C._get_mkldnn_enabled()
    kind, transposed = cpu_products.kind_of(rows), y_NK.stride(1) != 1
    state = cpu_products.setting(), torch.get_num_threads(), enabled
    return _is_faster(kind, summed, columns, x_MK.dtype, transposed, *state)


@functools.lru_cache(maxsize=4096)  # every product of a step asks
def _is_faster(kind: str, summed: int, columns: int, dtype: torch.dtype, transposed: bool, *state: object) -> bool:
    rows = {"few": 1, "some": cpu_products.FEW, "many": cpu_products.MANY}[kind]
    return cpu_products.onednn_is_faster(rows, summed, columns, torch.device("cpu"), dtype, transposed=transposed)


def times(x_MK: Tensor, y_NK: Tensor) -> Tensor:
    """Compute x y^T, [M, N]."""
    if _takes(x_MK, y_NK):
        return cpu_products.product(x_MK, y_NK)
    return x_MK @ y_NK.T


def times_into(out_MN: Tensor, x_MK: Tensor, y_NK: Tensor) -> Tensor:
    """Write x y^T into `out`, which may be a view with any row stride. Returns `out`."""
    if _takes(x_MK, y_NK):
        return out_MN.copy_(cpu_products.product(x_MK, y_NK))
    return torch.mm(x_MK, y_NK.T, out=out_MN)


def add_times(out_MN: Tensor, x_MK: Tensor, y_NK: Tensor) -> Tensor:
    """Add x y^T to `out`. Returns `out`."""
    if _takes(x_MK, y_NK):
        return out_MN.add_(cpu_products.product(x_MK, y_NK))
    return out_MN.addmm_(x_MK, y_NK.T)


def linear(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """Compute x W^T + b, [M, N]."""
    if _takes(x_MK, weight_NK):
        return cpu_products.product(x_MK, weight_NK, bias_N)
    return F.linear(x_MK, weight_NK, bias_N)


class _Linear(torch.autograd.Function):
    """`linear` with its gradients."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        return linear(x_MK, weight_NK, bias_N)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            times(gradient, weight.T) if wants_x else None,
            times(gradient.T, x.T) if wants_weight else None,
            gradient.sum(0) if wants_bias else None,
        )


class Linear(nn.Linear):
    """torch's linear layer with these products; under autocast, or without oneDNN, torch's own forward runs."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., K] to [..., N]."""
        device, dtype = self.weight.device, self.weight.dtype
        is_plain = x.dtype == dtype and cpu_products.onednn_takes(device, dtype)
        if not is_plain or torch.is_autocast_enabled(device.type):
            return super().forward(x)
        return _Linear.apply(x.reshape(-1, x.shape[-1]), self.weight, self.bias).view(*x.shape[:-1], -1)


def use_fast_linears(model: nn.Module) -> int:
    """Make every plain `nn.Linear` of a model a `Linear` of this file. Returns their number."""
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    for layer in layers:
        layer.__class__ = Linear
    return len(layers)
