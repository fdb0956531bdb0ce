"""Matrix products of the training step: in oneDNN on an x86 CPU, where float32 goes to MKL by itself.

MKL doesn't use AVX-512 on every processor that has it; see `seed_fast.model.products`, which this is for training.

Shapes: M rows, K summed, N columns; `y_NK` may be a transposed view.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seed_fast.model import products


def times(x_MK: Tensor, y_NK: Tensor) -> Tensor:
    """x y^T, [M, N]."""
    if products.onednn_takes(x_MK.device, x_MK.dtype):
        return products.product(x_MK, y_NK)
    return x_MK @ y_NK.T


def times_into(out_MN: Tensor, x_MK: Tensor, y_NK: Tensor) -> Tensor:
    """out = x y^T; returns out, which may be a view with any distance between rows."""
    if products.onednn_takes(x_MK.device, x_MK.dtype):
        return out_MN.copy_(products.product(x_MK, y_NK))
    return torch.mm(x_MK, y_NK.T, out=out_MN)


def add_times(out_MN: Tensor, x_MK: Tensor, y_NK: Tensor) -> Tensor:
    """out += x y^T; returns out."""
    if products.onednn_takes(x_MK.device, x_MK.dtype):
        return out_MN.add_(products.product(x_MK, y_NK))
    return out_MN.addmm_(x_MK, y_NK.T)


def linear(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """x W^T + b, [M, N]."""
    if products.onednn_takes(x_MK.device, x_MK.dtype):
        return torch.ops.mkldnn._linear_pointwise(x_MK, weight_NK, bias_N, "none", [], None)
    return F.linear(x_MK, weight_NK, bias_N)
