"""nearest_code: the id of the nearest codebook entry.

    ids[n] = argmin over k of  ||codebook[k]||^2 - 2 z[n] . codebook[k]      in exact arithmetic, lowest k on ties

z [..., D] and codebook [K, D] are float32, float16 or bfloat16 in any mix and with any strides (float64: by the
reference alone). Returns ids [...] int64 and, on request, margin [...] float32: the gap in squared distance between the
best and the second-best entry (inf where K = 1). Deterministic, not differentiable, never materialises [N, K].

Every backend screens in a fast precision with a stated error bound and decides what lies inside the bound in float64,
so all return the same ids. A row of z that holds NaN has no nearest code: id -1, margin nan. A row or an entry whose
squared norm overflows float32 is a ValueError; on a GPU, where raising would wait for the device, such a row gets id -1
and margin nan, such an entry gives them to every row, and only an explicit `pack_codebook` raises.

Source: the argmin of `VectorQuantizer2` in the official models/seed_qformer/qformer_quantizer.py.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from seed_fast.ops import _dispatch, _native
from seed_fast.ops.backends import nearest_code as backends

CHUNK = 64  # rows of z whose scores the reference holds at a time
DTYPES = (*_native.DTYPE_CODES, torch.float64)
LIBRARY = torch.library.Library("seed_fast", "FRAGMENT")
LIBRARY.define("nearest_code(Tensor z, Tensor codebook, Tensor? packed, bool return_margin) -> (Tensor, Tensor)")


class PackedCodebook(NamedTuple):
    """A codebook laid out once for the kernel of its device: a snapshot, made by `pack_codebook`."""

    codebook: Tensor  # [K, D]
    packed: Tensor | None  # [bytes] uint8; None where this machine's kernels want no layout of their own


def reference(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, in float64: z [N, D], codebook [K, D] -> ids [N] int64, margin [N] float32."""
    valid = z.float().square().sum(1).isfinite() & codebook.float().square().sum(1).isfinite().all()
    z, codebook = z.double(), codebook.double()
    norms = codebook.square().sum(1)
    ids, margin = torch.full_like(valid, -1, dtype=torch.int64), torch.full_like(valid, math.nan, dtype=torch.float32)
    for at in range(0, len(z), CHUNK):
        rows_ND = z[at : at + CHUNK]
        scores_NK = norms - 2 * rows_ND @ codebook.T
        # A GEMM may round two equal entries differently: what lies within its rounding is summed again, all alike.
        doubt_N = 2**-51 * (z.shape[1] + 2) * (norms.max() + rows_ND.norm(dim=1) * norms.max().sqrt())
        row, code = (scores_NK <= scores_NK.amin(1, keepdim=True) + 2 * doubt_N[:, None]).nonzero(as_tuple=True)
        scores_NK[row, code] = norms[code] - 2 * (rows_ND[row] * codebook[code]).sum(1)
        ids[at : at + CHUNK] = scores_NK.argmin(1)
        best = scores_NK.topk(min(2, len(codebook)), dim=1, largest=False).values
        margin[at : at + CHUNK] = best[:, 1] - best[:, 0] if len(codebook) > 1 else math.inf
    return ids.where(valid, -1), margin.where(valid, math.nan)


def _run_reference(z: Tensor, codebook: Tensor, packed: Tensor | None, return_margin: bool) -> tuple[Tensor, Tensor]:
    if not z.is_cuda:
        _check_norms("codebook entry", codebook, codebook.new_zeros(len(codebook), dtype=torch.bool))
        _check_norms("row of z", z, z.isnan().any(1))
    ids, margin = reference(z, codebook)
    return ids, margin if return_margin else margin[:0]


def _check_norms(what: str, x: Tensor, excused: Tensor) -> None:
    bad = ~(x.float().square().sum(1).isfinite() | excused)
    if bad.any():
        raise ValueError(backends.OVERFLOW.format(what=what, index=int(bad.nonzero()[0])))


@torch.library.register_fake("seed_fast::nearest_code", lib=LIBRARY)
def _fake(z: Tensor, codebook: Tensor, packed: Tensor | None, return_margin: bool) -> tuple[Tensor, Tensor]:
    n = z.shape[0]
    return z.new_empty(n, dtype=torch.int64), z.new_empty(n if return_margin else 0, dtype=torch.float32)


def _run(z: Tensor, codebook: Tensor, packed: Tensor | None, return_margin: bool) -> tuple[Tensor, Tensor]:
    arguments = (z, codebook, packed, return_margin)
    return _dispatch.select("nearest_code", *arguments).run(*arguments)


LIBRARY.impl("nearest_code", _run, "CompositeExplicitAutograd")

_dispatch.register(
    "nearest_code",
    _dispatch.Backend(
        "cuda",
        backends.cuda,
        _native.cuda_unavailable,
        backends.cuda_objections,
        note="compiled for every architecture, executed on the host by the C++ tests, never yet run on a GPU",
    ),
    _dispatch.Backend(
        "triton",
        backends.triton,
        _native.triton_unavailable,
        backends.triton_objections,
        note="tested under the Triton interpreter, never yet run on a GPU",
    ),
    _dispatch.Backend("cpu", backends.cpu, _native.cpu_unavailable, backends.cpu_objections),
    _dispatch.Backend("reference", _run_reference, lambda: "", lambda *arguments: []),
)


def pack_codebook(codebook: Tensor) -> PackedCodebook:
    """Lay a codebook out once, for many calls of `nearest_code` with codebook unchanged.

    Args:
        codebook: [K, D] float32, float16, bfloat16 or float64; copied, so later writes to it have no effect.

    Returns:
        What `nearest_code` takes in place of `codebook`, on the same device.

    Raises:
        TypeError, ValueError: not such a tensor, or an entry whose squared norm overflows float32.
    """
    _check_codebook("pack_codebook", codebook)
    codebook = codebook.detach().clone()
    _check_norms("codebook entry", codebook, torch.zeros_like(codebook[:, 0], dtype=torch.bool))
    packed = None
    if codebook.dtype in _native.DTYPE_CODES:
        if codebook.is_cuda and not _native.cuda_unavailable():
            packed = backends.pack_cuda(codebook)
        elif codebook.device.type == "cpu" and not _native.cpu_unavailable():
            packed = backends.pack_cpu(codebook)
    return PackedCodebook(codebook, packed)


def _check_codebook(op: str, codebook: Tensor) -> None:
    if not isinstance(codebook, Tensor):
        raise TypeError(f"{op}: codebook must be a Tensor or a PackedCodebook, got {type(codebook).__name__}")
    if codebook.dim() != 2 or 0 in codebook.shape:
        raise ValueError(f"{op}: codebook must be [K, D] with K, D >= 1, got {list(codebook.shape)}")
    if codebook.dtype not in DTYPES:
        raise TypeError(f"{op}: codebook must be float32, float16, bfloat16 or float64, got {codebook.dtype}")


def check(op: str, z: Tensor, codebook: Tensor | PackedCodebook) -> tuple[Tensor, Tensor | None]:
    """(codebook [K, D], its packed form or None), or an error that names what is wrong with z [..., D] or codebook."""
    codebook, packed = codebook if isinstance(codebook, PackedCodebook) else (codebook, None)
    _check_codebook(op, codebook)
    if not isinstance(z, Tensor):
        raise TypeError(f"{op}: z must be a Tensor, got {type(z).__name__}")
    if z.dim() < 1 or z.shape[-1] != codebook.shape[1]:
        width = z.shape[-1] if z.dim() else "D"
        raise ValueError(f"{op}: codebook must be [K, {width}] to match z {list(z.shape)}, got {list(codebook.shape)}")
    if z.dtype not in DTYPES:
        raise TypeError(f"{op}: z must be float32, float16, bfloat16 or float64, got {z.dtype}")
    if z.device != codebook.device:
        raise ValueError(f"{op}: codebook must be on {z.device} like z, got {codebook.device}")
    return codebook, packed


@overload
def nearest_code(z: Tensor, codebook: Tensor | PackedCodebook, *, return_margin: Literal[False] = False) -> Tensor: ...
@overload
def nearest_code(
    z: Tensor, codebook: Tensor | PackedCodebook, *, return_margin: Literal[True]
) -> tuple[Tensor, Tensor]: ...
def nearest_code(
    z: Tensor, codebook: Tensor | PackedCodebook, *, return_margin: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Id of the nearest codebook entry of every vector, equal to the float64 argmin on every backend.

    Args:
        z: [..., D] float32, float16, bfloat16 or float64.
        codebook: [K, D], or what `pack_codebook` made of it.
        return_margin: also return the gap to the second best.

    Returns:
        ids [...] int64, -1 where z holds NaN; with `return_margin`, (ids, margin [...] float32 in squared distance).

    Raises:
        TypeError, ValueError: wrong dtype, shape or device, or a squared norm that overflows float32.
        BackendError: a forced backend cannot run.

    Examples:
        >>> nearest_code(torch.tensor([[0.9], [0.1]]), torch.tensor([[0.0], [1.0]]))
        tensor([1, 0])
    """
    codebook, packed = check("nearest_code", z, codebook)
    rows_ND = z.detach().reshape(-1, z.shape[-1])
    ids, margin = torch.ops.seed_fast.nearest_code(rows_ND, codebook.detach(), packed, return_margin)
    ids = ids.reshape(z.shape[:-1])
    return (ids, margin.reshape(z.shape[:-1])) if return_margin else ids
