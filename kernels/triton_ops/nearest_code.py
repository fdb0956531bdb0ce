"""nearest_code in Triton, for sm_80 and newer: a float32 screen over all codes, then an exact pass over doubtful rows.

The screen keeps the largest and second-largest s = z.e - ||e||^2 / 2 of every row, and marks the row when their gap
lies within the error bound of float32. The exact pass sums marked rows again in double-double (about 106 bits):
products of float32 are exact in float64, so ties stay ties and the lowest index wins, with or without fused
multiply-add.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_N, BLOCK_K = 64, 64  # rows and codes of the screen's tile
BLOCK_EXACT = 128  # codes that the exact pass scores at a time


@triton.jit
def nearest_code_fwd_kernel(
    z,  # pointer to z, shape (N, D)
    codebook,  # pointer to codebook, shape (K, D)
    ids,  # pointer to ids, shape (N,), int64
    doubtful,  # pointer to marks for the exact pass, shape (N,), int8
    N,
    K,
    D: tl.constexpr,
    stride_zn,
    stride_zd,
    stride_ek,
    stride_ed,
    ALL_DOUBTFUL: tl.constexpr,
    PADDED_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, PADDED_D)
    z_mask = (rows < N)[:, None] & (dims < D)[None, :]
    z_tile = tl.load(z + rows[:, None] * stride_zn + dims[None, :] * stride_zd, mask=z_mask, other=0.0).to(tl.float32)
    z_square = tl.sum(z_tile * z_tile, axis=1)
    # Rows without an answer go through as zeros, so that no NaN meets a reduction.
    z_tile = tl.where((z_square < float("inf"))[:, None], z_tile, 0.0)

    best = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    second = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    best_id = tl.full((BLOCK_N,), 0, tl.int64)
    largest = tl.full((BLOCK_K,), 0.0, tl.float32)
    broken = tl.full((BLOCK_K,), 0, tl.int32)
    for start in range(0, K, BLOCK_K):
        codes = start + tl.arange(0, BLOCK_K).to(tl.int64)
        e_mask = (codes < K)[:, None] & (dims < D)[None, :]
        e_tile = tl.load(codebook + codes[:, None] * stride_ek + dims[None, :] * stride_ed, mask=e_mask, other=0.0)
        e_tile = e_tile.to(tl.float32)
        e_square = tl.sum(e_tile * e_tile, axis=1)
        largest = tl.maximum(largest, e_square)
        broken = tl.where(e_square < float("inf"), broken, 1)
        e_tile = tl.where((e_square < float("inf"))[:, None], e_tile, 0.0)
        s = tl.dot(z_tile, tl.trans(e_tile), input_precision="ieee") - 0.5 * e_square[None, :]
        s = tl.where((codes < K)[None, :], s, float("-inf"))
        top = tl.max(s, axis=1)
        top_at = tl.argmax(s, axis=1)
        rest = tl.max(tl.where(tl.arange(0, BLOCK_K)[None, :] == top_at[:, None], float("-inf"), s), axis=1)
        second = tl.maximum(tl.minimum(best, top), tl.maximum(second, rest))
        best_id = tl.where(top > best, start + top_at.to(tl.int64), best_id)
        best = tl.maximum(best, top)

    # |computed s - exact s| <= gamma (||z|| ||e|| + ||e||^2 / 2), gamma = n u / (1 - n u), n = D + 4 roundings of
    # u = 2^-24, doubled for the roundings of this bound; the constant covers products that underflow.
    largest_square = tl.max(largest, axis=0)
    gamma: tl.constexpr = 2 * (D + 4) * 2.0**-24
    bound = gamma * (tl.sqrt(z_square) * tl.sqrt(largest_square) + 0.5 * largest_square) + (D + 4) * 2.0**-126
    valid = (z_square < float("inf")) & (tl.max(broken, axis=0) == 0)
    decided = best - second > 2 * bound  # false for NaN and overflow too
    tl.store(ids + rows, tl.where(valid, best_id, -1), mask=rows < N)
    tl.store(doubtful + rows, (valid & (ALL_DOUBTFUL | (decided == 0))).to(tl.int8), mask=rows < N)


@triton.jit
def _two_sum(a, b):
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


@triton.jit
def _add(a_high, a_low, b_high, b_low):
    high, low = _two_sum(a_high, b_high)
    more, less = _two_sum(a_low, b_low)
    high, low = _two_sum(high, low + more)
    return _two_sum(high, low + less)


@triton.jit
def nearest_code_exact_kernel(
    z,  # pointer to z, shape (N, D)
    codebook,  # pointer to codebook, shape (K, D)
    ids,  # pointer to ids, shape (N,), int64
    margin,  # pointer to margin, shape (N,), float32, where HAS_MARGIN
    doubtful,  # pointer to marks, shape (N,), int8
    K,
    D,
    stride_zn,
    stride_zd,
    stride_ek,
    stride_ed,
    HAS_MARGIN: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if tl.load(doubtful + row) != 0:
        # The best code of each lane; a lane meets its codes in rising order, so only a smaller score replaces it.
        lanes = tl.arange(0, BLOCK_K).to(tl.int64)
        best_high = tl.full((BLOCK_K,), float("inf"), tl.float64)
        best_low = tl.full((BLOCK_K,), 0.0, tl.float64)
        best_id = lanes
        second = tl.full((BLOCK_K,), float("inf"), tl.float64)
        for start in range(0, K, BLOCK_K):
            codes = start + lanes
            high = tl.full((BLOCK_K,), 0.0, tl.float64)
            low = tl.full((BLOCK_K,), 0.0, tl.float64)
            for d in range(D):
                e = tl.load(codebook + codes * stride_ek + d * stride_ed, mask=codes < K, other=0.0)
                e = e.to(tl.float32).to(tl.float64)
                value = tl.load(z + row * stride_zn + d * stride_zd).to(tl.float32).to(tl.float64)
                term_high, term_low = _two_sum(e * e, -2.0 * value * e)
                high, low = _add(high, low, term_high, term_low)
            high = tl.where(codes < K, high, float("inf"))
            better = (high < best_high) | ((high == best_high) & (low < best_low))
            second = tl.minimum(second, tl.where(better, best_high, high))
            best_high = tl.where(better, high, best_high)
            best_low = tl.where(better, low, best_low)
            best_id = tl.where(better, codes, best_id)
        top_high = tl.min(best_high, axis=0)
        top = best_high == top_high
        top_low = tl.min(tl.where(top, best_low, float("inf")), axis=0)
        top = top & (best_low == top_low)
        top_id = tl.min(tl.where(top, best_id, K), axis=0)
        tl.store(ids + row, top_id)
        if HAS_MARGIN:
            rest = tl.where(best_id == top_id, second, best_high)
            tl.store(margin + row, (tl.min(rest, axis=0) - top_high).to(tl.float32))
    elif HAS_MARGIN:
        tl.store(margin + row, float("nan"))


def nearest_code_fwd(z: Tensor, codebook: Tensor, ids: Tensor, margin: Tensor | None) -> None:
    """z [N, D], codebook [K, D] -> ids [N] int64 and, where it is wanted, margin [N] float32, written in place.

    A margin is computed exactly, so asking for it sends every row through the second pass.
    """
    n, d = z.shape
    if n == 0:
        return
    k = codebook.shape[0]
    padded = max(16, triton.next_power_of_2(d))
    doubtful = torch.empty(n, dtype=torch.int8, device=z.device)
    strides = (*z.stride(), *codebook.stride())
    nearest_code_fwd_kernel[(triton.cdiv(n, BLOCK_N),)](
        z, codebook, ids, doubtful, n, k, d, *strides,
        ALL_DOUBTFUL=margin is not None, PADDED_D=padded, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K if padded <= 64 else 32,
        enable_fp_fusion=True,
    )  # fmt: skip
    nearest_code_exact_kernel[(n,)](
        z, codebook, ids, doubtful if margin is None else margin, doubtful, k, d, *strides,
        HAS_MARGIN=margin is not None, BLOCK_K=BLOCK_EXACT, enable_fp_fusion=True,
    )  # fmt: skip
