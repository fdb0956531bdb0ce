"""vector_quantize on the C++ CPU, the CUDA and the Triton kernels, and on any device from nearest_code and torch.

Forward functions take z [N, D], codebook [K, D] and packed (or None), and return z_q [N, D], ids [N] int64, commit []
and codebook_loss []. Backward functions return grad_z [N, D] and grad_codebook [K, D], each [0] where it is not needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seed_fast.ops import _native
from seed_fast.ops.backends import nearest_code as nearest

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def loss_dtype(z: Tensor, codebook: Tensor) -> torch.dtype:
    """Return the dtype of the two losses: float32, or float64 where an input is."""
    return torch.promote_types(torch.promote_types(z.dtype, codebook.dtype), torch.float32)


def cpu(z: Tensor, codebook: Tensor, packed: Tensor | None) -> Outputs:
    """Launch csrc/cpu/nearest_code.cpp, whose epilogue gathers the entries and squares the distance of every row."""
    packed = nearest.pack_cpu(codebook) if packed is None else packed
    z_q = z.new_empty(z.shape)
    ids = z.new_empty(z.shape[0], dtype=torch.int64)
    squares = z.new_empty(z.shape[0], dtype=torch.float64)
    overflow = _native.module().vector_quantize_cpu(
        z.data_ptr(), _native.DTYPE_CODES[z.dtype], *z.shape, *z.stride(), packed.data_ptr(), codebook.shape[0],
        z_q.data_ptr(), ids.data_ptr(), squares.data_ptr(), _native.threads(), _native.isa(),
    )  # fmt: skip
    if overflow >= 0:
        raise ValueError(nearest.OVERFLOW.format(what="row of z", index=overflow))
    loss = (squares.sum() / z.numel()).to(loss_dtype(z, codebook))
    return z_q, ids, loss, loss.clone()


def cpu_backward(
    z: Tensor, codebook: Tensor, ids: Tensor, grad_z_q: Tensor, grad_commit: Tensor, grad_codebook_loss: Tensor,
    need_z: bool, need_codebook: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch csrc/cpu/vector_quantize.cpp: rows are sorted by id, and each entry sums its rows in order, in float64."""
    grad_z = z.new_empty(z.shape if need_z else 0)
    grad_codebook = codebook.new_empty(codebook.shape if need_codebook else 0)
    _native.module().vector_quantize_backward_cpu(
        (z.data_ptr(), *z.stride()), (codebook.data_ptr(), *codebook.stride()), ids.data_ptr(),
        (grad_z_q.data_ptr(), *grad_z_q.stride()), float(grad_commit), float(grad_codebook_loss),
        _native.DTYPE_CODES[z.dtype], _native.DTYPE_CODES[codebook.dtype], *z.shape, codebook.shape[0],
        grad_z.data_ptr() if need_z else 0, grad_codebook.data_ptr() if need_codebook else 0, _native.threads(),
    )  # fmt: skip
    return grad_z, grad_codebook


def cuda(z: Tensor, codebook: Tensor, packed: Tensor | None) -> Outputs:
    """Launch csrc/cuda/nearest_code.cu, then csrc/cuda/vector_quantize.cu, which sums both losses in a fixed order."""
    module = _native.module()
    with torch.cuda.device(z.device):
        z, codebook = _native.contiguous_rows(z), _native.contiguous_rows(codebook)
        ids, _ = nearest.cuda(z, codebook, packed, False)
        z_q = z.new_empty(z.shape)
        commit, codebook_loss = (z.new_empty((), dtype=torch.float32) for _ in range(2))
        size = module.vector_quantize_cuda_workspace_bytes(len(z))
        workspace = torch.empty(size, dtype=torch.uint8, device=z.device)
        module.vector_quantize_cuda(
            _device_matrix(z), _device_matrix(codebook), z.shape[1], ids.data_ptr(), z_q.data_ptr(),
            commit.data_ptr(), codebook_loss.data_ptr(), workspace.data_ptr(), _native.stream(z),
        )  # fmt: skip
    return z_q, ids, commit, codebook_loss


def cuda_backward(
    z: Tensor, codebook: Tensor, ids: Tensor, grad_z_q: Tensor, grad_commit: Tensor, grad_codebook_loss: Tensor,
    need_z: bool, need_codebook: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch csrc/cuda/vector_quantize.cu: each entry sums its rows in order, in float64, without sort or atomics."""
    with torch.cuda.device(z.device):
        z, codebook = _native.contiguous_rows(z), _native.contiguous_rows(codebook)
        grad_z = z.new_empty(z.shape if need_z else 0)
        grad_codebook = codebook.new_empty(codebook.shape if need_codebook else 0)
        _native.module().vector_quantize_backward_cuda(
            _device_matrix(z), _device_matrix(codebook), z.shape[1], ids.data_ptr(),
            (grad_z_q.data_ptr(), *grad_z_q.stride()), grad_commit.data_ptr(), grad_codebook_loss.data_ptr(),
            grad_z.data_ptr() if need_z else 0, grad_codebook.data_ptr() if need_codebook else 0, _native.stream(z),
        )  # fmt: skip
    return grad_z, grad_codebook


def triton(z: Tensor, codebook: Tensor, packed: Tensor | None) -> Outputs:
    """Launch kernels/triton_ops/nearest_code.py, then kernels/triton_ops/vector_quantize.py."""
    from seed_fast.kernels.vector_quantize import vector_quantize_fwd

    ids, _ = nearest.triton(z, codebook, packed, False)
    z_q = z.new_empty(z.shape)
    loss = vector_quantize_fwd(z, codebook, ids, z_q).to(loss_dtype(z, codebook))
    return z_q, ids, loss, loss.clone()


def triton_backward(
    z: Tensor, codebook: Tensor, ids: Tensor, grad_z_q: Tensor, grad_commit: Tensor, grad_codebook_loss: Tensor,
    need_z: bool, need_codebook: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch kernels/triton_ops/vector_quantize.py: torch sorts the ids, and one program sums the rows of an entry."""
    from seed_fast.kernels.vector_quantize import vector_quantize_bwd_codebook, vector_quantize_bwd_z

    grad_z = z.new_empty(z.shape if need_z else 0)
    grad_codebook = codebook.new_empty(codebook.shape if need_codebook else 0)
    if need_z:
        vector_quantize_bwd_z(z, codebook, ids, grad_z_q, grad_commit, grad_z)
    if need_codebook:
        vector_quantize_bwd_codebook(z, codebook, ids, grad_codebook_loss, grad_codebook)
    return grad_z, grad_codebook


def _device_matrix(x: Tensor) -> tuple[int, int, int, int]:
    """Return (address, dtype code, rows, row stride) of x [N, D], as the CUDA launchers take a matrix."""
    return x.data_ptr(), _native.DTYPE_CODES[x.dtype], x.shape[0], x.stride(0)


def composite(z: Tensor, codebook: Tensor, packed: Tensor | None) -> Outputs:
    """Run nearest_code of the device, then gather the entries and average the squared distances in torch."""
    ids, _ = torch.ops.seed_fast.nearest_code(z, codebook, packed, False)
    z_q = torch.where(ids[:, None] >= 0, codebook[ids.clamp(min=0)], torch.nan)
    loss = (z_q.double() - z.double()).square().mean().to(loss_dtype(z, codebook))
    return z_q.to(z.dtype), ids, loss, loss.clone()


def composite_backward(
    z: Tensor, codebook: Tensor, ids: Tensor, grad_z_q: Tensor, grad_commit: Tensor, grad_codebook_loss: Tensor,
    need_z: bool, need_codebook: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute both gradients in torch, in float64."""
    valid = (ids >= 0)[:, None]
    chosen = torch.where(valid, codebook[ids.clamp(min=0)].double(), torch.nan)
    difference = (chosen - z.double()) * (2 / max(1, z.numel()))  # [N, D]
    grad_z = (grad_z_q.double() - grad_commit.double() * difference).to(z.dtype) if need_z else z.new_empty(0)
    if not need_codebook:
        return grad_z, codebook.new_empty(0)
    rows = (grad_codebook_loss.double() * difference).where(valid, 0)
    total = torch.zeros(codebook.shape, dtype=torch.float64, device=codebook.device)
    # Both sum the rows of an entry in a fixed order: index_add_ is sequential on a CPU, where index_put_ would add
    # atomically; index_put_ sorts on a GPU, where index_add_ would.
    if total.is_cuda:
        total.index_put_((ids.clamp(min=0),), rows, accumulate=True)
    else:
        total.index_add_(0, ids.clamp(min=0), rows)
    return grad_z, total.to(codebook.dtype)
