"""vector_quantize in Triton, for sm_80 and newer, given the ids from nearest_code: forward pass and gradients.

The forward pass gives the quantized rows and the mean squared distance. Sums are in float64 and in one fixed order, so
results are bit-equal from run to run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def vector_quantize_fwd_kernel(
    z,  # pointer to z, shape (N, D)
    codebook,  # pointer to codebook, shape (K, D)
    ids,  # pointer to ids, shape (N,), int64; -1: no entry
    z_q,  # pointer to the quantized rows, shape (N, D), contiguous
    sums,  # pointer to sums of squared distances, shape (programs,), float64
    N,
    D: tl.constexpr,
    stride_zn,
    stride_zd,
    stride_ek,
    stride_ed,
    PADDED_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # Rows of this program and their entries; NaN for rows without an entry.
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, PADDED_D)
    inside = (rows < N)[:, None] & (dims < D)[None, :]
    ids_N = tl.load(ids + rows, mask=rows < N, other=0)
    at = tl.maximum(ids_N, 0)
    entry = tl.load(codebook + at[:, None] * stride_ek + dims[None, :] * stride_ed, mask=inside, other=0.0)
    entry = tl.where((ids_N >= 0)[:, None], entry.to(tl.float32), float("nan"))
    # Squared distances, in float64.
    value = tl.load(z + rows[:, None] * stride_zn + dims[None, :] * stride_zd, mask=inside, other=0.0)
    difference = tl.where(inside, entry.to(tl.float64) - value.to(tl.float32).to(tl.float64), 0.0)
    tl.store(z_q + rows[:, None] * D + dims[None, :], entry.to(z_q.dtype.element_ty), mask=inside)
    tl.store(sums + tl.program_id(0), tl.sum(tl.sum(difference * difference, axis=1), axis=0))


@triton.jit
def vector_quantize_bwd_z_kernel(
    z,  # pointer to z, shape (N, D)
    codebook,  # pointer to codebook, shape (K, D)
    ids,  # pointer to ids, shape (N,), int64; -1: no entry
    grad_z_q,  # pointer to the gradient of z_q, shape (N, D)
    grad_commit,  # pointer to the gradient of the commitment loss, shape (), float32
    grad_z,  # pointer to the gradient of z, shape (N, D), contiguous
    N,
    D: tl.constexpr,
    stride_zn,
    stride_zd,
    stride_ek,
    stride_ed,
    stride_gn,
    stride_gd,
    PADDED_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # Rows of this program and their entries; NaN for rows without an entry.
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, PADDED_D)
    inside = (rows < N)[:, None] & (dims < D)[None, :]
    ids_N = tl.load(ids + rows, mask=rows < N, other=0)
    at = tl.maximum(ids_N, 0)
    entry = tl.load(codebook + at[:, None] * stride_ek + dims[None, :] * stride_ed, mask=inside, other=0.0)
    entry = tl.where((ids_N >= 0)[:, None], entry.to(tl.float32), float("nan"))
    value = tl.load(z + rows[:, None] * stride_zn + dims[None, :] * stride_zd, mask=inside, other=0.0)
    # The gradient of z_q passes straight through; that of the commitment loss is added.
    above = tl.load(grad_z_q + rows[:, None] * stride_gn + dims[None, :] * stride_gd, mask=inside, other=0.0)
    scale = tl.load(grad_commit).to(tl.float64) * 2.0 / (tl.cast(N, tl.float64) * D)
    difference = entry.to(tl.float64) - value.to(tl.float32).to(tl.float64)
    gradient = (above.to(tl.float32).to(tl.float64) - scale * difference).to(tl.float32)
    tl.store(grad_z + rows[:, None] * D + dims[None, :], gradient.to(grad_z.dtype.element_ty), mask=inside)


@triton.jit
def vector_quantize_bwd_codebook_kernel(
    z,  # pointer to z, shape (N, D)
    codebook,  # pointer to codebook, shape (K, D)
    order,  # pointer to the rows sorted by id, equal ids in rising order, shape (N,), int64
    first,  # pointer to where each entry's rows start in order, shape (K + 1,), int64
    grad_codebook_loss,  # pointer to the gradient of the codebook loss, shape (), float32
    grad_codebook,  # pointer to the gradient of the codebook, shape (K, D), contiguous
    N,
    D: tl.constexpr,
    stride_zn,
    stride_zd,
    stride_ek,
    stride_ed,
    PADDED_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # One program per entry sums over the rows that chose it, in their order.
    entry_at = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, PADDED_D)
    entry = tl.load(codebook + entry_at * stride_ek + dims * stride_ed, mask=dims < D, other=0.0)
    entry = entry.to(tl.float32).to(tl.float64)
    begin, end = tl.load(first + entry_at), tl.load(first + entry_at + 1)
    total = tl.full((PADDED_D,), 0.0, tl.float64)
    for start in range(begin, end, BLOCK_N):
        slots = start + tl.arange(0, BLOCK_N)
        rows = tl.load(order + slots, mask=slots < end, other=0)
        inside = (slots < end)[:, None] & (dims < D)[None, :]
        value = tl.load(z + rows[:, None] * stride_zn + dims[None, :] * stride_zd, mask=inside, other=0.0)
        total += tl.sum(tl.where(inside, entry[None, :] - value.to(tl.float32).to(tl.float64), 0.0), axis=0)
    scale = tl.load(grad_codebook_loss).to(tl.float64) * 2.0 / (tl.cast(N, tl.float64) * D)
    gradient = (scale * total).to(tl.float32).to(grad_codebook.dtype.element_ty)
    tl.store(grad_codebook + entry_at * D + dims, gradient, mask=dims < D)


def vector_quantize_fwd(z: Tensor, codebook: Tensor, ids: Tensor, z_q: Tensor) -> Tensor:
    """Write z_q [N, D], the entries that ids [N] choose; return the mean squared distance [] in float64."""
    n, d = z.shape
    options = _options(d)
    programs = triton.cdiv(n, options["BLOCK_N"])
    sums = torch.empty(programs, dtype=torch.float64, device=z.device)
    if n > 0:
        vector_quantize_fwd_kernel[(programs,)](
            z, codebook, ids, z_q, sums, n, d, *z.stride(), *codebook.stride(), **options
        )
    return sums.sum() / z.numel()


def vector_quantize_bwd_z(
    z: Tensor, codebook: Tensor, ids: Tensor, grad_z_q: Tensor, grad_commit: Tensor, grad_z: Tensor
) -> None:
    """Write the gradient of z into grad_z [N, D], contiguous."""
    n, d = z.shape
    options = _options(d)
    if n > 0:
        vector_quantize_bwd_z_kernel[(triton.cdiv(n, options["BLOCK_N"]),)](
            z, codebook, ids, grad_z_q, grad_commit, grad_z, n, d, *z.stride(), *codebook.stride(),
            *grad_z_q.stride(), **options,
        )  # fmt: skip


def vector_quantize_bwd_codebook(
    z: Tensor, codebook: Tensor, ids: Tensor, grad_codebook_loss: Tensor, grad_codebook: Tensor
) -> None:
    """Write the gradient of the codebook into grad_codebook [K, D], contiguous."""
    n, d = z.shape
    k = codebook.shape[0]
    if n == 0:
        grad_codebook.zero_()
        return
    in_order, order = ids.sort(stable=True)
    first = torch.searchsorted(in_order, torch.arange(k + 1, device=ids.device))
    vector_quantize_bwd_codebook_kernel[(k,)](
        z, codebook, order, first, grad_codebook_loss, grad_codebook, n, d, *z.stride(), *codebook.stride(),
        **_options(d),
    )  # fmt: skip


def _options(d: int) -> dict[str, int | bool]:
    """Return the compile-time options of all three kernels for width d."""
    rows = 32 if d <= 64 else 8  # rows per program
    return {"PADDED_D": triton.next_power_of_2(d), "BLOCK_N": rows, "enable_fp_fusion": True}
