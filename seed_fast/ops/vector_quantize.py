"""vector_quantize: the nearest codebook entry, the straight-through output and both loss terms, in one pass.

    ids        = nearest_code(z, codebook)
    z_q        = codebook[ids]                         forward; its gradient goes to z unchanged (straight-through)
    commit     = mean((sg[codebook[ids]] - z)^2)       gradient to z alone
    codebook   = mean((codebook[ids] - sg[z])^2)       gradient to the codebook alone

z [..., D] and codebook [K, D] as in `nearest_code`. Returns z_q like z, ids [...] int64, and the two unweighted terms
as float32 scalars (float64 for float64 inputs); sums are float64. The codebook's gradient is summed in row order, so it
is deterministic, and no one-hot matrix exists anywhere. A row with NaN gets id -1, z_q nan, and makes both terms nan.

Source: `VectorQuantizer2` of the official models/seed_qformer/qformer_quantizer.py, whose loss is
commit + 0.25 * codebook (legacy=True: beta on the codebook term).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seed_fast.ops import _dispatch, _native
from seed_fast.ops._native import CUDA_NOTE, TRITON_NOTE
from seed_fast.ops.backends import nearest_code as nearest
from seed_fast.ops.backends import vector_quantize as backends
from seed_fast.ops.nearest_code import LIBRARY, PackedCodebook, check
from seed_fast.ops.nearest_code import reference as nearest_code_reference

LIBRARY.define(
    "vector_quantize(Tensor z, Tensor codebook, Tensor? packed) "
    "-> (Tensor z_q, Tensor ids, Tensor commit, Tensor codebook_loss)"
)
LIBRARY.define(
    "vector_quantize_backward(Tensor z, Tensor codebook, Tensor ids, Tensor grad_z_q, Tensor grad_commit, "
    "Tensor grad_codebook_loss, bool need_z, bool need_codebook) -> (Tensor grad_z, Tensor grad_codebook)"
)


def reference(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the definition in plain torch, differentiable.

    Returns:
        z_q [N, D], ids [N] int64, commit [] and codebook_loss [], from z [N, D] and codebook [K, D].
    """
    ids, _ = nearest_code_reference(z.detach(), codebook.detach())
    chosen = torch.where(ids[:, None] >= 0, codebook[ids], torch.nan)
    z_q = (z + (chosen - z).detach()).to(z.dtype)
    precise = torch.promote_types(torch.promote_types(z.dtype, codebook.dtype), torch.float32)
    commit = (chosen.detach().double() - z.double()).square().mean().to(precise)
    codebook_loss = (chosen.double() - z.detach().double()).square().mean().to(precise)
    return z_q, ids, commit, codebook_loss


@torch.library.register_fake("seed_fast::vector_quantize", lib=LIBRARY)
def _fake(z: Tensor, codebook: Tensor, packed: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    precise = backends.loss_dtype(z, codebook)
    scalars = z.new_empty((), dtype=precise), z.new_empty((), dtype=precise)
    return z.new_empty(z.shape), z.new_empty(z.shape[0], dtype=torch.int64), *scalars


@torch.library.register_fake("seed_fast::vector_quantize_backward", lib=LIBRARY)
def _fake_backward(
    z: Tensor, codebook: Tensor, ids: Tensor, grad_z_q: Tensor, grad_commit: Tensor, grad_codebook_loss: Tensor,
    need_z: bool, need_codebook: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return z.new_empty(z.shape if need_z else 0), codebook.new_empty(codebook.shape if need_codebook else 0)


def _run(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _dispatch.select("vector_quantize", *arguments).run(*arguments)


def _run_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    return _dispatch.select("vector_quantize_backward", *arguments).run(*arguments)


LIBRARY.impl("vector_quantize", _run, "CompositeExplicitAutograd")
LIBRARY.impl("vector_quantize_backward", _run_backward, "CompositeExplicitAutograd")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    z, codebook, _ = inputs
    ctx.save_for_backward(z, codebook, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(
    ctx: Any, grad_z_q: Tensor, _: Tensor, grad_commit: Tensor, grad_codebook_loss: Tensor
) -> tuple[Tensor | None, Tensor | None, None]:
    need_z, need_codebook = ctx.needs_input_grad[:2]
    grad_z, grad_codebook = torch.ops.seed_fast.vector_quantize_backward(
        *ctx.saved_tensors, grad_z_q, grad_commit, grad_codebook_loss, need_z, need_codebook
    )
    return grad_z if need_z else None, grad_codebook if need_codebook else None, None


torch.library.register_autograd("seed_fast::vector_quantize", _backward, setup_context=_setup_context, lib=LIBRARY)

_dispatch.register(
    "vector_quantize",
    _dispatch.Backend("cuda", backends.cuda, _native.cuda_unavailable, nearest.cuda_objections, CUDA_NOTE),
    _dispatch.Backend("triton", backends.triton, _native.triton_unavailable, nearest.triton_objections, TRITON_NOTE),
    _dispatch.Backend("cpu", backends.cpu, _native.cpu_unavailable, nearest.cpu_objections),
    _dispatch.Backend("reference", backends.composite, lambda: "", lambda *arguments: []),
)
_dispatch.register(
    "vector_quantize_backward",
    _dispatch.Backend("cuda", backends.cuda_backward, _native.cuda_unavailable, nearest.cuda_objections, CUDA_NOTE),
    _dispatch.Backend(
        "triton", backends.triton_backward, _native.triton_unavailable, nearest.triton_objections, TRITON_NOTE
    ),
    _dispatch.Backend("cpu", backends.cpu_backward, _native.cpu_unavailable, nearest.cpu_objections),
    _dispatch.Backend("reference", backends.composite_backward, lambda: "", lambda *arguments: []),
)


def vector_quantize(z: Tensor, codebook: Tensor | PackedCodebook) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Quantize every vector to its nearest codebook entry, straight-through, with both loss terms.

    Args:
        z: [..., D] float32, float16, bfloat16 or float64.
        codebook: [K, D], or the result of `pack_codebook`, which gets no gradient.

    Returns:
        z_q [..., D] of z's dtype; ids [...] int64; commitment loss [] and codebook loss [], both unweighted.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device, or a squared norm that overflows float32.
        BackendError: a forced backend cannot run.

    Examples:
        >>> z = torch.tensor([[0.9], [0.2]], requires_grad=True)
        >>> z_q, ids, commit, codebook_loss = vector_quantize(z, torch.tensor([[0.0], [1.0]]))
        >>> z_q.flatten().tolist(), ids.tolist(), round(commit.item(), 4)
        ([1.0, 0.0], [1, 0], 0.025)
    """
    codebook, packed = check("vector_quantize", z, codebook)
    rows_ND = z.reshape(-1, z.shape[-1])
    z_q, ids, commit, codebook_loss = torch.ops.seed_fast.vector_quantize(rows_ND, codebook, packed)
    return z_q.reshape(z.shape), ids.reshape(z.shape[:-1]), commit, codebook_loss
