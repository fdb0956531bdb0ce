"""relu_squared on the C++ and the Triton kernel, and in torch on any device: x [...] -> y [...], contiguous."""

from __future__ import annotations

import torch
from torch import Tensor

from seed_fast.ops import _native


def cpu(x: Tensor) -> Tensor:
    """Launch the kernel of csrc/cpu/relu_squared.cpp."""
    x = x.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype)
    _native.module().relu_squared_cpu(x.data_ptr(), y.data_ptr(), x.numel(), _native.threads())
    return y


def cpu_objections(x: Tensor) -> list[str]:
    """Return why the C++ kernel cannot run on x; an empty list where it can."""
    return ([] if x.device.type == "cpu" else [f"x is on {x.device}"]) + _dtype_objections(x)


def triton(x: Tensor) -> Tensor:
    """Launch the kernel of kernels/triton_ops/relu_squared.py."""
    from seed_fast.kernels.relu_squared import relu_squared_fwd

    return relu_squared_fwd(x.contiguous())


def triton_objections(x: Tensor) -> list[str]:
    """Return why the Triton kernel cannot run on x; an empty list where it can."""
    return _native.triton_device_objections(x) + _dtype_objections(x)


def composite(x: Tensor) -> Tensor:
    """Run the definition, in plain torch."""
    from seed_fast.ops.relu_squared import reference

    return reference(x).contiguous()


def _dtype_objections(x: Tensor) -> list[str]:
    return [] if x.dtype == torch.float32 else [f"x is {str(x.dtype)[6:]}"]
