"""bias_gelu on the C++ CPU kernel, the CUDA and the Triton kernels, and in torch on any device.

Every function takes x [N, D] and bias [D], and writes y [N, D], which may be x itself (then its rows are contiguous).
"""

from __future__ import annotations

import torch
from torch import Tensor

from seed_fast.ops import _native


def cpu(x: Tensor, bias: Tensor, y: Tensor) -> None:
    """Launch the kernel of csrc/cpu/bias_gelu.cpp."""
    x, bias = _native.contiguous_rows(x), bias.contiguous()
    _native.module().bias_gelu_cpu(*_arguments(x, bias, y), _native.threads(), _native.isa())


def cpu_objections(x: Tensor, bias: Tensor) -> list[str]:
    """Return why the C++ kernel cannot run on these arguments; an empty list where it can."""
    return _native.device_objections("cpu", x=x) + _native.dtype_objections(x=x.dtype, bias=bias.dtype)


def cuda(x: Tensor, bias: Tensor, y: Tensor) -> None:
    """Launch the kernel of csrc/cuda/bias_gelu.cu."""
    with torch.cuda.device(x.device):
        x, bias = _native.contiguous_rows(x), bias.contiguous()
        _native.module().bias_gelu_cuda(*_arguments(x, bias, y), _native.stream(x))


def cuda_objections(x: Tensor, bias: Tensor) -> list[str]:
    """Return why the CUDA kernels cannot run on these arguments; an empty list where they can."""
    return _native.device_objections("cuda", x=x) + _native.dtype_objections(x=x.dtype, bias=bias.dtype)


def triton(x: Tensor, bias: Tensor, y: Tensor) -> None:
    """Launch the kernel of kernels/triton_ops/bias_gelu.py."""
    from seed_fast.kernels.bias_gelu import bias_gelu_fwd

    bias_gelu_fwd(x, bias, y)


def triton_objections(x: Tensor, bias: Tensor) -> list[str]:
    """Return why the Triton kernel cannot run on these arguments; an empty list where it can."""
    return _native.triton_device_objections(x) + _native.dtype_objections(x=x.dtype, bias=bias.dtype)


def composite(x: Tensor, bias: Tensor, y: Tensor) -> None:
    """Run the definition, in plain torch."""
    from seed_fast.ops.bias_gelu import reference

    y.copy_(reference(x, bias))


def _arguments(x: Tensor, bias: Tensor, y: Tensor) -> tuple[object, ...]:
    """Return the arguments that both launchers share: addresses, row strides, dtype codes and sizes."""
    codes = _native.DTYPE_CODES
    return (
        (x.data_ptr(), x.stride(0)), codes[x.dtype], bias.data_ptr(), codes[bias.dtype], (y.data_ptr(), y.stride(0)),
        *x.shape,
    )  # fmt: skip
