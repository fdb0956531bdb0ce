"""bias_gelu on the C++ CPU kernel, the CUDA and the Triton kernels, and in torch on any device.

Every function takes x [N, D] and bias [D], and writes y [N, D], which may be x itself (then its rows are contiguous).
"""

from __future__ import annotations

import torch
from torch import Tensor

from seed_fast.ops import _native

# Triton generates wrong or slow code for GPUs older than sm_80.
TRITON_MINIMUM = (8, 0)


def cpu(x: Tensor, bias: Tensor, y: Tensor) -> None:
    """Launch the kernel of csrc/cpu/bias_gelu.cpp."""
    x, bias = _rows(x), bias.contiguous()
    _native.module().bias_gelu_cpu(*_arguments(x, bias, y), _native.threads(), _native.isa())


def cpu_objections(x: Tensor, bias: Tensor) -> list[str]:
    """Return why the C++ kernel cannot run on these arguments; an empty list where it can."""
    return ([] if x.device.type == "cpu" else [f"x is on {x.device}"]) + _dtype_objections(x, bias)


def cuda(x: Tensor, bias: Tensor, y: Tensor) -> None:
    """Launch the kernel of csrc/cuda/bias_gelu.cu."""
    with torch.cuda.device(x.device):
        x, bias = _rows(x), bias.contiguous()
        _native.module().bias_gelu_cuda(*_arguments(x, bias, y), _native.stream(x))


def cuda_objections(x: Tensor, bias: Tensor) -> list[str]:
    """Return why the CUDA kernels cannot run on these arguments; an empty list where they can."""
    return ([] if x.is_cuda else [f"x is on {x.device}"]) + _dtype_objections(x, bias)


def triton(x: Tensor, bias: Tensor, y: Tensor) -> None:
    """Launch the kernel of kernels/triton_ops/bias_gelu.py."""
    from seed_fast.kernels.bias_gelu import bias_gelu_fwd

    bias_gelu_fwd(x, bias, y)


def triton_objections(x: Tensor, bias: Tensor) -> list[str]:
    """Return why the Triton kernel cannot run on these arguments; an empty list where it can."""
    reasons = _native.triton_device_objections(x) + _dtype_objections(x, bias)
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < TRITON_MINIMUM:
        reasons.append("the GPU is older than sm_80")
    return reasons


def composite(x: Tensor, bias: Tensor, y: Tensor) -> None:
    """Run the definition, in plain torch."""
    from seed_fast.ops.bias_gelu import reference

    y.copy_(reference(x, bias))


def _dtype_objections(x: Tensor, bias: Tensor) -> list[str]:
    dtypes = {"x": x.dtype, "bias": bias.dtype}
    return [f"{name} is {str(dtype)[6:]}" for name, dtype in dtypes.items() if dtype not in _native.DTYPE_CODES]


def _rows(x: Tensor) -> Tensor:
    """Return x with contiguous rows, copied only where they are not."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _arguments(x: Tensor, bias: Tensor, y: Tensor) -> tuple[object, ...]:
    """Return the arguments that both launchers share: addresses, row strides, dtype codes and sizes."""
    codes = _native.DTYPE_CODES
    return (
        (x.data_ptr(), x.stride(0)), codes[x.dtype], bias.data_ptr(), codes[bias.dtype], (y.data_ptr(), y.stride(0)),
        *x.shape,
    )  # fmt: skip
