"""attention in Triton, for sm_80 and newer: one program per (batch, head, block of queries).

A program iterates over blocks of keys with an online softmax: output sums are rescaled when the largest score of a row
grows. Up to BLOCK_KEYS keys, as in the layers with 32 queries and 32 keys, are a single block, so the softmax needs no
rescaling. Loads of the last block are masked, so 257 keys read 257 rows. The row's largest score is subtracted before
scores are scaled: that difference is exact for scores near the largest, so large scores cost no precision.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK_QUERIES = 32
BLOCK_KEYS = 64


@triton.jit
def attention_fwd_kernel(
    q,  # pointer to q, shape (B, Lq, H, D)
    k,  # pointer to k, shape (B, Lk, H, D)
    v,  # pointer to v, shape (B, Lk, H, D)
    out,  # pointer to out, shape (B, Lq, H, D), contiguous
    H,
    Lq,
    Lk,
    scale,
    stride_qb,
    stride_ql,
    stride_qh,
    stride_qd,
    stride_kb,
    stride_kl,
    stride_kh,
    stride_kd,
    stride_vb,
    stride_vl,
    stride_vh,
    stride_vd,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    CAUSAL: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # The queries of this program stay in registers.
    blocks = tl.cdiv(Lq, BLOCK_Q)
    program = tl.program_id(0).to(tl.int64)
    first, h, b = program % blocks * BLOCK_Q, program // blocks % H, program // blocks // H
    rows = first + tl.arange(0, BLOCK_Q)
    dims = tl.arange(0, PADDED_D)
    q_mask = (rows < Lq)[:, None] & (dims < D)[None, :]
    q_rows = q + b * stride_qb + h * stride_qh + rows[:, None] * stride_ql
    q_tile = tl.load(q_rows + dims[None, :] * stride_qd, mask=q_mask, other=0.0)
    if UPCAST:
        q_tile = q_tile.to(tl.float32)

    # The scale is split into its sign, which is applied before the largest score is determined, and its magnitude,
    # which is applied after the subtraction. With scale 0 every score is 0, and the magnitude is replaced by 1.
    sign = tl.where(scale > 0, 1.0, tl.where(scale < 0, -1.0, 0.0))
    steepness = tl.where(scale == 0, 1.0, tl.abs(scale))
    largest = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.full((BLOCK_Q,), 0.0, tl.float32)
    acc = tl.full((BLOCK_Q, PADDED_D), 0.0, tl.float32)
    # One block of keys per iteration.
    end = tl.minimum(Lk, first + BLOCK_Q) if CAUSAL else Lk
    for start in range(0, end, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K).to(tl.int64)
        kv_mask = (keys < Lk)[:, None] & (dims < D)[None, :]
        k_rows = k + b * stride_kb + h * stride_kh + keys[:, None] * stride_kl
        v_rows = v + b * stride_vb + h * stride_vh + keys[:, None] * stride_vl
        k_tile = tl.load(k_rows + dims[None, :] * stride_kd, mask=kv_mask, other=0.0)
        v_tile = tl.load(v_rows + dims[None, :] * stride_vd, mask=kv_mask, other=0.0)
        if UPCAST:
            k_tile, v_tile = k_tile.to(tl.float32), v_tile.to(tl.float32)
        # First product, and mask.
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * sign
        visible = (keys < Lk)[None, :]
        if CAUSAL:
            visible = visible & (keys[None, :] <= rows[:, None])
        scores = tl.where(visible, scores, float("-inf"))
        # Softmax. If every score of a row is -inf so far, 0 is subtracted instead of the largest, because -inf - -inf
        # would be NaN even if a later key has a finite score.
        best = tl.maximum(largest, tl.max(scores, axis=1))
        reference = tl.where(best == float("-inf"), 0.0, best)
        rescale = tl.exp((largest - reference) * steepness)
        weights = tl.exp((scores - reference[:, None]) * steepness)
        total = total * rescale + tl.sum(weights, axis=1)
        # Second product, added to the rescaled output sums.
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc * rescale[:, None], input_precision="ieee")
        largest = best

    # Divide by the sum of weights and write the output.
    out_rows = out + ((b * Lq + rows[:, None]) * H + h) * D
    tl.store(out_rows + dims[None, :], (acc / total[:, None]).to(out.dtype.element_ty), mask=q_mask)


def attention_fwd(q: Tensor, k: Tensor, v: Tensor, out: Tensor, causal: bool, scale: float, upcast: bool) -> None:
    """Launch the kernel: q [B, Lq, H, D], k and v [B, Lk, H, D] give out [B, Lq, H, D], contiguous, written in place.

    With `upcast` the operands of both products are converted to float32. Triton's interpreter needs this, because its
    tl.dot is wrong for bfloat16.
    """
    b, lq, h, d = q.shape
    programs = b * h * triton.cdiv(lq, BLOCK_QUERIES)
    if programs == 0:
        return
    lk = k.shape[1]
    attention_fwd_kernel[(programs,)](
        q, k, v, out, h, lq, lk, scale, *q.stride(), *k.stride(), *v.stride(),
        D=d, PADDED_D=triton.next_power_of_2(d), CAUSAL=causal, UPCAST=upcast,
        BLOCK_Q=BLOCK_QUERIES, BLOCK_K=min(BLOCK_KEYS, max(16, triton.next_power_of_2(lk))), enable_fp_fusion=True,
    )  # fmt: skip
