"""bias_gelu in Triton, for sm_80 and newer: y = GELU(x + bias), one block of rows and columns per program."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def bias_gelu_fwd_kernel(
    x,  # pointer to x, shape (N, D)
    bias,  # pointer to the bias, shape (D,)
    y,  # pointer to the result, shape (N, D), of x's type; it may be x
    N,
    D,
    stride_xn,
    stride_xd,
    stride_bias,
    stride_yn,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # The block of this program; sum and GELU are float32.
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    dims = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (rows < N)[:, None] & (dims < D)[None, :]
    value = tl.load(x + rows[:, None] * stride_xn + dims[None, :] * stride_xd, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + dims * stride_bias, mask=dims < D, other=0.0).to(tl.float32)[None, :]
    result = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    tl.store(y + rows[:, None] * stride_yn + dims[None, :], result.to(y.dtype.element_ty), mask=inside)


def bias_gelu_fwd(x: Tensor, bias: Tensor, y: Tensor) -> None:
    """Launch the kernel: x [N, D] and bias [D] give y [N, D], written in place, with contiguous rows."""
    n, d = x.shape
    block_n, block_d = 4, min(1024, max(16, triton.next_power_of_2(d)))
    if n > 0:
        bias_gelu_fwd_kernel[(triton.cdiv(n, block_n), triton.cdiv(d, block_d))](
            x, bias, y, n, d, *x.stride(), bias.stride(0), y.stride(0), BLOCK_N=block_n, BLOCK_D=block_d, num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip
