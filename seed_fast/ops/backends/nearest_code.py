"""nearest_code on the C++ CPU kernel, the CUDA kernel and the Triton kernel.

Every function takes the op's arguments: z [N, D], codebook [K, D], packed (of the same device, or None), return_margin;
and returns ids [N] int64 and margin [N] float32 (shape [0] where `return_margin` is False).
"""

from __future__ import annotations

import torch
from torch import Tensor

from seed_fast.ops import _native

OVERFLOW = "nearest_code: the squared norm of every {what} must be finite in float32, {what} {index} is not"


def cpu(z: Tensor, codebook: Tensor, packed: Tensor | None, return_margin: bool) -> tuple[Tensor, Tensor]:
    """Launch the kernel of csrc/cpu/nearest_code.cpp."""
    module = _native.module()
    packed = pack_cpu(codebook) if packed is None else packed
    ids, margin = _outputs(z, return_margin)
    overflow = module.nearest_code_cpu(
        z.data_ptr(), _native.DTYPE_CODES[z.dtype], *z.shape, *z.stride(), packed.data_ptr(), codebook.shape[0],
        ids.data_ptr(), margin.data_ptr() if return_margin else 0, _native.threads(), _native.isa(),
    )  # fmt: skip
    if overflow >= 0:
        raise ValueError(OVERFLOW.format(what="row of z", index=overflow))
    return ids, margin


def cpu_objections(z: Tensor, codebook: Tensor, *options: object) -> list[str]:
    """Return why the C++ kernel cannot run on these arguments; an empty list where it can."""
    return _native.device_objections("cpu", z=z) + _dtype_objections(z, codebook)


def pack_cpu(codebook: Tensor) -> Tensor:
    """Return the codebook in the layout of the C++ kernel, [bytes] uint8.

    Raises:
        ValueError: an entry's squared norm is not finite in float32.
    """
    module = _native.module()
    packed = torch.empty(module.nearest_code_cpu_packed_bytes(*codebook.shape), dtype=torch.uint8)
    bad = module.pack_codebook_cpu(
        codebook.data_ptr(), _native.DTYPE_CODES[codebook.dtype], *codebook.shape, *codebook.stride(),
        packed.data_ptr(), _native.threads(), _native.isa(),
    )  # fmt: skip
    if bad >= 0:
        raise ValueError(OVERFLOW.format(what="codebook entry", index=bad))
    return packed


def cuda(z: Tensor, codebook: Tensor, packed: Tensor | None, return_margin: bool) -> tuple[Tensor, Tensor]:
    """Launch csrc/cuda/nearest_code.cu; z is copied where its last axis is not contiguous, O(N D) beside O(N K D)."""
    module = _native.module()
    with torch.cuda.device(z.device):
        packed = pack_cuda(codebook) if packed is None else packed
        z = _native.contiguous_rows(z)
        ids, margin = _outputs(z, return_margin)
        multiprocessors = torch.cuda.get_device_properties(z.device).multi_processor_count
        size = module.nearest_code_cuda_workspace_bytes(z.shape[0], codebook.shape[0], z.shape[1], multiprocessors)
        workspace = torch.empty(size, dtype=torch.uint8, device=z.device)
        module.nearest_code_cuda(
            z.data_ptr(), _native.DTYPE_CODES[z.dtype], *z.shape, z.stride(0), packed.data_ptr(), codebook.shape[0],
            ids.data_ptr(), margin.data_ptr() if return_margin else 0, workspace.data_ptr(), multiprocessors,
            _native.stream(z),
        )  # fmt: skip
    return ids, margin


def cuda_objections(z: Tensor, codebook: Tensor, *options: object) -> list[str]:
    """Return why the CUDA kernel cannot run on these arguments; an empty list where it can."""
    return _native.device_objections("cuda", z=z) + _dtype_objections(z, codebook)


def pack_cuda(codebook: Tensor) -> Tensor:
    """Return the codebook in the layout of the CUDA kernel, [bytes] uint8.

    Its first int32 is the index of an entry whose squared norm is not finite in float32, or -1.
    """
    module = _native.module()
    codebook = _native.contiguous_rows(codebook)
    packed = torch.empty(
        module.nearest_code_cuda_packed_bytes(*codebook.shape), dtype=torch.uint8, device=codebook.device
    )
    module.pack_codebook_cuda(
        codebook.data_ptr(), _native.DTYPE_CODES[codebook.dtype], *codebook.shape, codebook.stride(0),
        packed.data_ptr(), _native.stream(codebook),
    )  # fmt: skip
    return packed


def triton(z: Tensor, codebook: Tensor, packed: Tensor | None, return_margin: bool) -> tuple[Tensor, Tensor]:
    """Launch the kernel of kernels/triton_ops/nearest_code.py."""
    from seed_fast.kernels.nearest_code import nearest_code_fwd

    ids, margin = _outputs(z, return_margin)
    nearest_code_fwd(z, codebook, ids, margin if return_margin else None)
    return ids, margin


def triton_objections(z: Tensor, codebook: Tensor, *options: object) -> list[str]:
    """Return why the Triton kernel cannot run on these arguments; an empty list where it can."""
    return _native.triton_device_objections(z) + _dtype_objections(z, codebook)


def _outputs(z: Tensor, return_margin: bool) -> tuple[Tensor, Tensor]:
    """Allocate ids and margin."""
    n = z.shape[0]
    return z.new_empty(n, dtype=torch.int64), z.new_empty(n if return_margin else 0, dtype=torch.float32)


def _dtype_objections(z: Tensor, codebook: Tensor) -> list[str]:
    return _native.dtype_objections(z=z.dtype, codebook=getattr(codebook, "codebook", codebook).dtype)
