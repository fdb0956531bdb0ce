"""add_layer_norm on the C++ CPU kernel, the CUDA and the Triton kernels, and in torch on any device.

Every function takes x, delta [N, D], weight, bias [D], eps and post_norm, and writes its results into stream [N, D] and
y [N, D]. `stream` may be x itself, or None where only y is wanted. `_objections` functions take the op's arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seed_fast.ops import _native


def cpu(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float, post_norm: bool, stream: Tensor | None,
    y: Tensor,
) -> None:  # fmt: skip
    """Launch the kernel of csrc/cpu/add_layer_norm.cpp."""
    x, delta = _native.contiguous_rows(x), _native.contiguous_rows(delta)
    weight, bias = _floats(weight), _floats(bias)
    _native.module().add_layer_norm_cpu(
        _matrix(x), _matrix(delta), weight.data_ptr(), bias.data_ptr(), eps, post_norm, _matrix(stream, like=x),
        _matrix(y), *x.shape, _native.threads(), _native.isa(),
    )  # fmt: skip


def cpu_objections(x: Tensor, *others: Any) -> list[str]:
    """Return why the C++ kernel cannot run on these arguments; an empty list where it can."""
    return _native.device_objections("cpu", x=x) + _dtype_objections(x, *others)


def cuda(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float, post_norm: bool, stream: Tensor | None,
    y: Tensor,
) -> None:  # fmt: skip
    """Launch the kernel of csrc/cuda/add_layer_norm.cu."""
    with torch.cuda.device(x.device):
        x, delta = _native.contiguous_rows(x), _native.contiguous_rows(delta)
        weight, bias = _floats(weight), _floats(bias)
        _native.module().add_layer_norm_cuda(
            _matrix(x), _matrix(delta), weight.data_ptr(), bias.data_ptr(), eps, post_norm, _matrix(stream, like=x),
            _matrix(y), *x.shape, _native.stream(x),
        )  # fmt: skip


def cuda_objections(x: Tensor, *others: Any) -> list[str]:
    """Return why the CUDA kernels cannot run on these arguments; an empty list where they can."""
    return _native.device_objections("cuda", x=x) + _dtype_objections(x, *others)


def triton(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float, post_norm: bool, stream: Tensor | None,
    y: Tensor,
) -> None:  # fmt: skip
    """Launch the kernel of kernels/triton_ops/add_layer_norm.py."""
    from seed_fast.kernels.add_layer_norm import add_layer_norm_fwd

    add_layer_norm_fwd(x, delta, weight, bias, eps, post_norm, stream, y)


def triton_objections(x: Tensor, *others: Any) -> list[str]:
    """Return why the Triton kernel cannot run on these arguments; an empty list where it can."""
    return _native.triton_device_objections(x) + _dtype_objections(x, *others)


def composite(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float, post_norm: bool, stream: Tensor | None,
    y: Tensor,
) -> None:  # fmt: skip
    """Run the definition, in plain torch."""
    from seed_fast.ops.add_layer_norm import reference

    got_stream, got_y = reference(x, delta, weight, bias, eps, y.dtype, post_norm)
    y.copy_(got_y)
    if stream is not None:
        stream.copy_(got_stream)


def _dtype_objections(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype, *others: object
) -> list[str]:
    return _native.dtype_objections(
        x=x.dtype, delta=delta.dtype, weight=weight.dtype, bias=bias.dtype, out_dtype=out_dtype
    )


def _floats(x: Tensor) -> Tensor:
    """Return x as the kernels read weights, float32 and contiguous; x itself where it is."""
    return x.detach().float().contiguous()


def _matrix(x: Tensor | None, like: Tensor | None = None) -> tuple[int, int, int]:
    """Return (address, dtype code, row stride) of x; for None address 0, with the dtype and row stride of `like`."""
    if x is None:
        assert like is not None
        return 0, _native.DTYPE_CODES[like.dtype], like.shape[1]
    return x.data_ptr(), _native.DTYPE_CODES[x.dtype], x.stride(0)
