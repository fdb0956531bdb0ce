"""nearest_code in Triton, for sm_80 and newer: a float32 screen over all codes, then an exact pass over doubtful rows.

The screen computes the scores s = z.e - ||e||^2 / 2 in float32, keeps the largest and second-largest of every row, and
marks the row as doubtful if their difference is within the error bound. The exact pass scores the codes of doubtful
rows in float64. Scores whose difference is within the error of float64 are compared exactly, as integers: multiples of
2^-298, in limbs of 32 bits. So ties are detected, and the lowest index wins.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_N, BLOCK_K = 64, 64  # rows and codes of the screen's tile
BLOCK_EXACT = 128  # codes that the exact pass scores at a time
LIMBS = tl.constexpr(16)  # of 32 bits: enough for scores of up to 3 * 2^128 in units of 2^-298
NO_CODE = tl.constexpr(2**62)  # stands for no code; greater than every id
FLOAT32_MAX = tl.constexpr(torch.finfo(torch.float32).max)


@triton.jit
def _float32(x):
    """Return x in float32. bfloat16 is widened by its bits: Triton's interpreter converts its subnormals wrongly."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def _load(pointer, mask):
    """Return the elements at `pointer` in float32; 0 where the mask is false."""
    return _float32(tl.load(pointer, mask=mask, other=0.0))


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
    # Rows of this program.
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, PADDED_D)
    z_mask = (rows < N)[:, None] & (dims < D)[None, :]
    z_tile = _load(z + rows[:, None] * stride_zn + dims[None, :] * stride_zd, z_mask)
    z_square = tl.sum(z_tile * z_tile, axis=1)
    # Rows with NaN or infinity are replaced by zeros, because reductions with NaN are undefined; they get no id below.
    z_tile = tl.where((z_square < float("inf"))[:, None], z_tile, 0.0)

    # One block of codes per iteration. Of each row the best two scores are kept; of the codebook the largest norm and
    # element, and whether a norm overflows (`broken`).
    best = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    second = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    best_id = tl.full((BLOCK_N,), 0, tl.int64)
    largest = tl.full((BLOCK_K,), 0.0, tl.float32)  # ||e||^2
    largest_element = tl.full((BLOCK_K,), 0.0, tl.float32)
    broken = tl.full((BLOCK_K,), 0, tl.int32)
    for start in range(0, K, BLOCK_K):
        codes = start + tl.arange(0, BLOCK_K).to(tl.int64)
        e_mask = (codes < K)[:, None] & (dims < D)[None, :]
        e_tile = _load(codebook + codes[:, None] * stride_ek + dims[None, :] * stride_ed, e_mask)
        e_square = tl.sum(e_tile * e_tile, axis=1)
        largest = tl.maximum(largest, e_square)
        broken = tl.where(e_square < float("inf"), broken, 1)
        e_tile = tl.where((e_square < float("inf"))[:, None], e_tile, 0.0)
        largest_element = tl.maximum(largest_element, tl.max(tl.abs(e_tile), axis=1))
        s = tl.dot(z_tile, tl.trans(e_tile), input_precision="ieee") - 0.5 * e_square[None, :]
        s = tl.where((codes < K)[None, :], s, float("-inf"))
        top = tl.max(s, axis=1)
        top_at = tl.argmax(s, axis=1)
        rest = tl.max(tl.where(tl.arange(0, BLOCK_K)[None, :] == top_at[:, None], float("-inf"), s), axis=1)
        second = tl.maximum(tl.minimum(best, top), tl.maximum(second, rest))
        best_id = tl.where(top > best, start + top_at.to(tl.int64), best_id)
        best = tl.maximum(best, top)

    # The error |computed s - exact s| is at most gamma (||z|| ||e|| + ||e||^2 / 2) with gamma = n u / (1 - n u), where
    # n = D + 4 is the number of roundings and u = 2^-24. gamma is doubled to cover the roundings of the bound itself,
    # and the last term covers underflow. Squares below 2^-126, of elements below 2^-63, may be missing in the norms;
    # the second term of each length covers them.
    largest_square = tl.max(largest, axis=0)
    root: tl.constexpr = (D + 1) ** 0.5
    z_length = tl.sqrt(z_square) + root * 2.0**-62
    e_length = tl.sqrt(largest_square) + root * tl.minimum(tl.max(largest_element, axis=0), 2.0**-62)
    gamma: tl.constexpr = 2 * (D + 4) * 2.0**-24
    tiny: tl.constexpr = (D + 4) * 2.0**-125
    bound = gamma * (z_length * e_length + 0.5 * largest_square) + tiny * (1 + z_length + e_length)
    # A norm that overflows here may be finite in exact arithmetic, so the row is doubtful rather than without an id.
    decided = (best - second > 2 * bound) & (z_square < float("inf")) & (tl.max(broken, axis=0) == 0)
    nan = z_square != z_square
    tl.store(ids + rows, tl.where(nan, -1, best_id), mask=rows < N)
    tl.store(doubtful + rows, ((nan == 0) & (ALL_DOUBTFUL | (decided == 0))).to(tl.int8), mask=rows < N)


@triton.jit
def _product_in_limbs(a, b, doubled: tl.constexpr):
    """Return a * b * 2^doubled for float32 values a [B] and b, as limbs [B, LIMBS] of one sign, not yet carried."""
    a_bits, b_bits = a.to(tl.int32, bitcast=True).to(tl.int64), b.to(tl.int32, bitcast=True).to(tl.int64)
    a_exponent, b_exponent = (a_bits >> 23) & 0xFF, (b_bits >> 23) & 0xFF
    a_significand = (a_bits & 0x7FFFFF) | tl.where(a_exponent > 0, 0x800000, 0)
    b_significand = (b_bits & 0x7FFFFF) | tl.where(b_exponent > 0, 0x800000, 0)
    shift = tl.maximum(a_exponent, 1) + tl.maximum(b_exponent, 1) - 2 + doubled
    product = (a_significand * b_significand)[:, None]  # 48 bits
    # Limb l holds bits 32 l to 32 l + 31 of product << shift.
    right = 32 * tl.arange(0, LIMBS).to(tl.int64)[None, :] - shift[:, None]
    low = (product & 0xFFFFFFFF) << tl.minimum(tl.maximum(-right, 0), 31)
    limbs = tl.where(right >= 0, product >> tl.minimum(tl.maximum(right, 0), 63), tl.where(right > -32, low, 0))
    limbs = limbs & 0xFFFFFFFF
    return tl.where(((a_bits ^ b_bits) < 0)[:, None], -limbs, limbs)


@triton.jit
def _limb(limbs, i, axis: tl.constexpr):
    """Return limb i of limbs [LIMBS] (axis 0) or [B, LIMBS] (axis 1)."""
    at = tl.arange(0, LIMBS)
    if axis == 1:
        at = at[None, :]
    return tl.sum(tl.where(at == i, limbs, 0), axis=axis)


@triton.jit
def _carried(limbs):
    """Return limbs [B, LIMBS] with carries propagated: in [0, 2^32), except the last one, which has the sign."""
    at = tl.arange(0, LIMBS)[None, :]
    carry = _limb(limbs, 0, 1) * 0
    for i in range(LIMBS):
        total = _limb(limbs, i, 1) + carry
        carry = total >> 32
        kept = tl.where(i == LIMBS - 1, total, total & 0xFFFFFFFF)
        limbs = tl.where(at == i, kept[:, None], limbs)
    return limbs


@triton.jit
def _smallest(limbs, codes, wanted):
    """Return limbs [LIMBS] and code of the smallest wanted row, the first among equals; NO_CODE if none is wanted."""
    for i in range(LIMBS):
        limb = _limb(limbs, LIMBS - 1 - i, 1)
        wanted = wanted & (limb == tl.min(tl.where(wanted, limb, NO_CODE), axis=0))
    code = tl.min(tl.where(wanted, codes, NO_CODE), axis=0)
    return tl.sum(tl.where((codes == code)[:, None], limbs, 0), axis=0), code


@triton.jit
def _precedes(a, a_code, b, b_code):
    """Return whether code a comes before b: by score (limbs [LIMBS]), then by index; NO_CODE comes last.

    This is a strict total order, so the result does not depend on the order of comparisons.
    """
    at = tl.arange(0, LIMBS)
    highest = tl.max(tl.where(a != b, at, -1), axis=0)
    less = tl.max(tl.where((at == highest) & (a < b), 1, 0), axis=0) > 0
    return (a_code != NO_CODE) & ((b_code == NO_CODE) | less | ((highest < 0) & (a_code < b_code)))


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
    # One row per program; rows that are not doubtful have their id from the screen.
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK_K).to(tl.int64)
    if tl.load(doubtful + row) != 0:
        # Score all codes in float64. Each lane keeps its two smallest scores and its largest norm.
        best = tl.full((BLOCK_K,), float("inf"), tl.float64)
        best_id = lanes
        second = tl.full((BLOCK_K,), float("inf"), tl.float64)
        largest = tl.full((BLOCK_K,), 0.0, tl.float64)
        broken = tl.full((BLOCK_K,), 0, tl.int32)
        z_square = tl.full((BLOCK_K,), 0.0, tl.float64)
        for start in range(0, K, BLOCK_K):
            codes = start + lanes
            score = tl.full((BLOCK_K,), 0.0, tl.float64)
            norm = tl.full((BLOCK_K,), 0.0, tl.float64)
            z_square = tl.full((BLOCK_K,), 0.0, tl.float64)
            for d in range(D):
                e = _load(codebook + codes * stride_ek + d * stride_ed, codes < K).to(tl.float64)
                value = _float32(tl.load(z + row * stride_zn + d * stride_zd)).to(tl.float64)
                norm += e * e
                z_square += value * value
                score += e * e - 2.0 * value * e
            broken = tl.where(norm <= FLOAT32_MAX, broken, 1)
            largest = tl.maximum(largest, norm)
            score = tl.where(codes < K, score, float("inf"))
            better = score < best
            second = tl.minimum(second, tl.where(better, best, score))
            best_id = tl.where(better, codes, best_id)
            best = tl.where(better, score, best)
        # The two smallest scores of all lanes.
        top = tl.min(best, axis=0)
        top_id = tl.min(tl.where(best == top, best_id, NO_CODE), axis=0)
        runner_up = tl.min(tl.where(best_id == top_id, second, best), axis=0)
        gap = runner_up - top
        row_square = tl.max(z_square, axis=0)
        valid = (row_square <= FLOAT32_MAX) & (tl.max(broken, axis=0) == 0)

        # Bound on the error of the difference of two scores: 2 D + 2 roundings each, relative to the sum of the
        # magnitudes of all terms. Float64 is not enough if the smallest two are closer than that; for a margin, if
        # their difference has fewer than about 26 correct bits.
        code_square = tl.max(largest, axis=0)
        doubt = (4 * D + 8) * 2.0**-53 * (code_square + 2 * tl.sqrt(code_square) * tl.sqrt(row_square))
        if HAS_MARGIN:
            unsure = gap <= 2.0**26 * doubt
            limit = runner_up + doubt
        else:
            unsure = gap <= doubt
            limit = top + doubt
        if valid & unsure:
            # Score the codes that can be among the best two once more, exactly, one block of codes per iteration.
            # `first` and `follower` are the exact scores of the best and, for a margin, the second best so far.
            first = tl.zeros((LIMBS,), tl.int64)
            first_id = row * 0 + NO_CODE
            follower = tl.zeros((LIMBS,), tl.int64)
            follower_id = row * 0 + NO_CODE
            for start in range(0, K, BLOCK_K):
                codes = start + lanes
                score = tl.full((BLOCK_K,), 0.0, tl.float64)
                for d in range(D):
                    e = _load(codebook + codes * stride_ek + d * stride_ed, codes < K).to(tl.float64)
                    value = _float32(tl.load(z + row * stride_zn + d * stride_zd)).to(tl.float64)
                    score += e * e - 2.0 * value * e
                wanted = (score <= limit) & (codes < K)
                if tl.max(wanted.to(tl.int32), axis=0) > 0:
                    limbs = tl.zeros((BLOCK_K, LIMBS), tl.int64)
                    for d in range(D):
                        e = _load(codebook + codes * stride_ek + d * stride_ed, codes < K)
                        value = _load(z + row * stride_zn + d * stride_zd + lanes * 0, codes < K)
                        limbs += _product_in_limbs(e, e, 0) - _product_in_limbs(e, value, 1)
                    limbs = _carried(limbs)
                    one, one_id = _smallest(limbs, codes, wanted)
                    wins = _precedes(one, one_id, first, first_id)
                    if HAS_MARGIN:
                        two, two_id = _smallest(limbs, codes, wanted & (codes != one_id))
                        loser, loser_id = tl.where(wins, first, one), tl.where(wins, first_id, one_id)
                        next_one, next_id = tl.where(wins, two, follower), tl.where(wins, two_id, follower_id)
                        sooner = _precedes(loser, loser_id, next_one, next_id)
                        follower = tl.where(sooner, loser, next_one)
                        follower_id = tl.where(sooner, loser_id, next_id)
                    first = tl.where(wins, one, first)
                    first_id = tl.where(wins, one_id, first_id)
            top_id = first_id
            if HAS_MARGIN:
                # Convert the difference of the exact scores to float64, from the highest limb down, so that limbs of
                # opposite signs cancel without rounding.
                gap = top * 0
                for i in range(LIMBS):
                    gap = gap * 4294967296.0 + _limb(follower - first, LIMBS - 1 - i, 0).to(tl.float64)
                gap = gap * 2.0**-298
        tl.store(ids + row, tl.where(valid, top_id, -1))
        if HAS_MARGIN:
            tl.store(margin + row, tl.where(valid, gap, float("nan")).to(tl.float32))
    elif HAS_MARGIN:
        tl.store(margin + row, float("nan"))


def nearest_code_fwd(z: Tensor, codebook: Tensor, ids: Tensor, margin: Tensor | None) -> None:
    """Launch both kernels: z [N, D] and codebook [K, D] give ids [N] int64, and margin [N] float32 or None.

    The results are written in place. A margin needs at least float64, so with one every row goes through the second
    kernel.
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
