"""add_layer_norm in Triton, for sm_80 and newer: one row per program, with its values in registers.

Mean and variance are computed in float32 in the same three steps as in csrc/cuda/add_layer_norm.cu: an approximate
mean, the differences from it, and from these the correction of the mean and the variance.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def add_layer_norm_fwd_kernel(
    x,  # pointer to the residual stream, shape (N, D)
    delta,  # pointer to what is added, shape (N, D)
    weight,  # pointer to the scale of the norm, shape (D,)
    bias,  # pointer to the shift of the norm, shape (D,)
    stream,  # pointer to the new residual stream, shape (N, D), of x's type; it may be x
    y,  # pointer to the norm, shape (N, D)
    eps,
    D,
    stride_xn,
    stride_xd,
    stride_deltan,
    stride_deltad,
    stride_weight,
    stride_bias,
    stride_streamn,
    stride_yn,
    HAS_STREAM: tl.constexpr,
    POST_NORM: tl.constexpr,
    PADDED_D: tl.constexpr,
):
    # The sum, rounded as the residual stream will hold it.
    row = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, PADDED_D)
    inside = dims < D
    value = tl.load(x + row * stride_xn + dims * stride_xd, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(delta + row * stride_deltan + dims * stride_deltad, mask=inside, other=0.0).to(tl.float32)
    value = value.to(x.dtype.element_ty).to(tl.float32)
    inverse_d = 1.0 / tl.cast(D, tl.float32)

    # Step 1: the approximate mean, as the first element plus the mean difference from it. So a constant row has
    # variance 0.
    start = tl.sum(tl.where(dims == 0, value, 0.0), axis=0)
    mean = start + tl.sum(tl.where(inside, value - start, 0.0) * inverse_d, axis=0)
    # Steps 2 and 3: differences from it, the correction of the mean, and the variance. If squares overflow, the
    # variance is infinite and the norm is the bias.
    difference = tl.where(inside, value - mean, 0.0)
    correction = tl.sum(difference * inverse_d, axis=0)
    square = tl.sum(difference * difference, axis=0) * inverse_d
    variance = square - correction * correction
    variance = tl.where(variance > 0.0, variance, tl.where(square < float("inf"), 0.0, square))
    scale = 1.0 / tl.sqrt_rn(variance + eps)

    # The norm, and the stream if it is wanted.
    weights = tl.load(weight + dims * stride_weight, mask=inside, other=0.0).to(tl.float32)
    shifts = tl.load(bias + dims * stride_bias, mask=inside, other=0.0).to(tl.float32)
    norm = (difference - correction) * scale * weights + shifts
    tl.store(y + row * stride_yn + dims, norm.to(y.dtype.element_ty), mask=inside)
    if HAS_STREAM:
        kept = norm if POST_NORM else value
        tl.store(stream + row * stride_streamn + dims, kept.to(stream.dtype.element_ty), mask=inside)


def add_layer_norm_fwd(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float, post_norm: bool, stream: Tensor | None,
    y: Tensor,
) -> None:  # fmt: skip
    """Launch the kernel: x, delta [N, D] and weight, bias [D] give stream (or None) and y [N, D].

    The results are written into the tensors given, whose rows are contiguous.
    """
    n, d = x.shape
    padded = triton.next_power_of_2(d)
    if n == 0:
        return
    add_layer_norm_fwd_kernel[(n,)](
        x, delta, weight, bias, y if stream is None else stream, y, eps, d, *x.stride(), *delta.stride(),
        weight.stride(0), bias.stride(0), 0 if stream is None else stream.stride(0), y.stride(0),
        HAS_STREAM=stream is not None, POST_NORM=post_norm, PADDED_D=padded,
        num_warps=max(1, min(16, padded // 512)), enable_fp_fusion=True,
    )  # fmt: skip
