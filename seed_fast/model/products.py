"""Matrix products of the inference plan, and where they run.

On an x86 CPU that is oneDNN. By itself torch takes it for half precision alone and leaves float32 to MKL, which
doesn't use AVX-512 on every processor that has it: `python -m benchmarks.e2e.products` compares them on the plan's
shapes. oneDNN also applies GELU (the exact one) while a result is still in registers.

oneDNN's kernels read weights in blocks. A weight that is a copy anyway (joined, or of another dtype) is stored that
way; one that can be shared with the modules stays as it is and is put into blocks in every call: the gain would be
some percent, the price holding a ViT-g twice.

Shapes: M rows, K summed, N columns.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seed_fast.model.passes import fused_on
from seed_fast.ops import bias_gelu

PROCESSORS = ("x86_64", "AMD64")  # elsewhere torch's own choice stands: nothing was measured
gelu_ = torch.ops.aten.gelu_  # F.gelu in place: fresh memory for a hidden layer costs a CPU more than the GELU


def onednn_takes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of this dtype are to run in oneDNN; `torch.backends.mkldnn.flags(enabled=False)` says no."""
    if device.type != "cpu" or platform.machine() not in PROCESSORS:
        return False
    if not torch.backends.mkldnn.is_available() or not torch._C._get_mkldnn_enabled():
        return False
    ops = torch.ops.mkldnn
    if not hasattr(ops, "_linear_pointwise") or not hasattr(ops, "_reorder_linear_weight"):
        return False
    if dtype == torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """activation(x W^T + b) by oneDNN; activation is "none" or "gelu"."""
    algorithm = "none" if activation == "gelu" else None  # the other one is "tanh"
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)
    return out


class Linear:
    """x W^T + b in one dtype, whatever x is; with `gelu`, GELU of that."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, *, gelu: bool = False) -> None:
        shared = isinstance(weight, nn.Parameter) and weight.dtype == dtype
        self.weight, self.bias = weight.detach().to(dtype), bias.detach().to(dtype)
        self.dtype, self.gelu = dtype, gelu
        self.fused = gelu and fused_on(weight.device)
        self.onednn = onednn_takes(weight.device, dtype)
        if self.onednn and not shared:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.fused:
            without_bias = product(x, self.weight) if self.onednn else F.linear(x, self.weight)
            return bias_gelu(without_bias, self.bias, inplace=True)
        if self.onednn:
            return _linear(x, self.weight, self.bias, "gelu" if self.gelu else "none")
        out = F.linear(x, self.weight, self.bias)
        return gelu_(out) if self.gelu else out


def product(x_MK: Tensor, y_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x y^T + b by oneDNN: [M, N], contiguous; for a dtype that `onednn_takes`. `y_NK` may be a transposed view."""
    return _linear(x_MK, y_NK, bias_N, "none")
