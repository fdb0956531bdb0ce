"""nearest_code: the id of the nearest codebook entry.

    ids[n] = argmin over k of  ||codebook[k]||^2 - 2 z[n] . codebook[k]      in exact arithmetic, lowest k on ties

z [..., D] and codebook [K, D] are float32, float16 or bfloat16 in any mix and with any strides (float64: by the
reference alone). Returns ids [...] int64 and, on request, margin [...] float32: the gap in squared distance between the
best and the second-best entry, exact but for the last bit of float32; 0 for ties, inf where K = 1. Deterministic, not
differentiable, never materialises [N, K].

Every backend computes scores in a fast precision with a stated error bound (the screen). Entries whose scores lie
within that bound of the best are scored again in float64, and in integers where float64 cannot tell them apart. So all
backends return the same ids. A row of z that holds NaN has no nearest code: its id is -1, its margin nan. A row or an
entry whose squared norm overflows float32 is a ValueError. On a GPU raising would wait for the device, so there such a
row gets id -1 and margin nan, such an entry gives these to every row, and only an explicit `pack_codebook` raises.

Source: the argmin of `VectorQuantizer2` in the official models/seed_qformer/qformer_quantizer.py.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from seed_fast.ops import _dispatch, _native
from seed_fast.ops._checks import check_dtype, check_tensors
from seed_fast.ops._native import CUDA_NOTE, TRITON_NOTE
from seed_fast.ops.backends import nearest_code as backends

CHUNK = 64  # rows of z whose scores the reference holds at a time
LIBRARY = torch.library.Library("seed_fast", "FRAGMENT")
LIBRARY.define("nearest_code(Tensor z, Tensor codebook, Tensor? packed, bool return_margin) -> (Tensor, Tensor)")


class PackedCodebook(NamedTuple):
    """A copy of a codebook in the layout that the kernel of its device reads; made by `pack_codebook`."""

    codebook: Tensor  # [K, D]
    packed: Tensor | None  # [bytes] uint8; None where this machine's kernels read the codebook as it is


def reference(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the definition: z [N, D], codebook [K, D] -> ids [N] int64, margin [N] float32.

    Scores come from float64, whose error is bounded; rows that it leaves open are decided in Python's integers.
    """
    valid_N = _norms_are_finite(z) & _norms_are_finite(codebook).all()
    z, codebook = _widen(z), _widen(codebook)
    norms_K = codebook.square().sum(1)
    # Largest ||e||, and ||z|| below: rounded up, and never zero because a square underflows.
    length = codebook.abs().amax() * math.sqrt(codebook.shape[1])
    ids_N = torch.full_like(valid_N, -1, dtype=torch.int64)
    margin_N = torch.full_like(valid_N, math.nan, dtype=torch.float32)
    for at in range(0, len(z), CHUNK):
        rows_ND = z[at : at + CHUNK]
        scores_NK = norms_K - 2 * rows_ND @ codebook.T
        # Bound on the error of the difference of two scores, in any order of summation: (D + 4) roundings of each.
        row_length_N = rows_ND.abs().amax(1) * math.sqrt(z.shape[1])
        doubt_N = (z.shape[1] + 4) * (2.0**-51 * length * (length + row_length_N) + 2.0**-1070)
        best = scores_NK.topk(min(2, len(codebook)), dim=1, largest=False)
        ids_N[at : at + CHUNK] = best.indices[:, 0]
        gap_N = best.values[:, -1] - best.values[:, 0] if len(codebook) > 1 else torch.full_like(doubt_N, math.inf)
        margin_N[at : at + CHUNK] = gap_N
        # Below this gap float64 may not know the winner, or not all bits of the margin.
        for row in (valid_N[at : at + CHUNK] & (gap_N <= 2.0**26 * doubt_N)).nonzero()[:, 0].tolist():
            (candidates,) = (scores_NK[row] <= best.values[row, -1] + 2 * doubt_N[row]).nonzero(as_tuple=True)
            first, gap = _exact_best(rows_ND[row].cpu().numpy(), codebook[candidates].cpu().numpy())
            ids_N[at + row], margin_N[at + row] = candidates[first], gap
    return ids_N.where(valid_N, -1), margin_N.where(valid_N, math.nan)


def _exact_best(z: np.ndarray, entries: np.ndarray) -> tuple[int, float]:
    """Compare the C >= 2 entries [C, D] with z [D], all float64, in exact arithmetic.

    Returns:
        The index of the nearest entry, the lowest one among equals, and the gap in squared distance to the second best.
    """
    different, first, counts = np.unique(entries + 0.0, axis=0, return_index=True, return_counts=True)
    significands, exponents = _significands(np.concatenate([z[None], different]))
    lowest = exponents[significands != 0].min(initial=0)
    integers = significands.astype(object) << np.where(significands != 0, exponents - lowest, 0).astype(object)
    e, value = integers[1:], integers[0]
    scores = (e * (e - 2 * value)).sum(axis=1).tolist()  # in units of 2^(2 lowest)
    order = sorted(range(len(scores)), key=lambda i: (scores[i], first[i]))
    gap = 0 if counts[order[0]] > 1 else scores[order[1]] - scores[order[0]]
    return int(first[order[0]]), float(gap * Fraction(2) ** (2 * int(lowest)))


def _significands(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 significands and exponents of finite float64 values: x = significand * 2^exponent, exactly."""
    bits = x.view(np.int64)
    exponents, fractions = bits >> 52 & 0x7FF, bits & (2**52 - 1)
    sizes = np.where(exponents > 0, fractions | 2**52, fractions)
    return np.where(bits < 0, -sizes, sizes), np.maximum(exponents, 1) - 1075


def _widen(x: Tensor) -> Tensor:
    """Return x in float64 without loss, even in a thread that flushes subnormals (`torch.set_flush_denormal`)."""
    if x.dtype == torch.float64:
        return x
    single = x.float().contiguous()
    bits = single.view(torch.int32)
    small = (bits & 0x7FFFFF).double() * 2.0**-149
    return torch.where((bits & 0x7F800000) == 0, torch.where(bits < 0, -small, small), single.double())


def _norms_are_finite(x: Tensor) -> Tensor:
    """Return a mask [N], True where the squared norm of the row of x [N, D] is finite in float32."""
    return x.double().square().sum(1) <= torch.finfo(torch.float32).max


def _run_reference(z: Tensor, codebook: Tensor, packed: Tensor | None, return_margin: bool) -> tuple[Tensor, Tensor]:
    if not z.is_cuda:
        _check_norms("codebook entry", codebook, codebook.new_zeros(len(codebook), dtype=torch.bool))
        _check_norms("row of z", z, z.isnan().any(1))
    ids, margin = reference(z, codebook)
    return ids, margin if return_margin else margin[:0]


def _check_norms(what: str, x: Tensor, excused: Tensor) -> None:
    """Raise a ValueError that names the first row of x [N, D] with a bad norm; rows in the mask `excused` [N] pass."""
    bad = ~(_norms_are_finite(x) | excused)
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
    _dispatch.Backend("cuda", backends.cuda, _native.cuda_unavailable, backends.cuda_objections, CUDA_NOTE),
    _dispatch.Backend("triton", backends.triton, _native.triton_unavailable, backends.triton_objections, TRITON_NOTE),
    _dispatch.Backend("cpu", backends.cpu, _native.cpu_unavailable, backends.cpu_objections),
    _dispatch.Backend("reference", _run_reference, lambda: "", lambda *arguments: []),
)


def pack_codebook(codebook: Tensor) -> PackedCodebook:
    """Prepare a codebook once for many calls of `nearest_code`, which otherwise prepare it in every call.

    Args:
        codebook: [K, D] float32, float16, bfloat16 or float64; copied, so later writes to it have no effect.

    Returns:
        A `PackedCodebook` on the same device, which `nearest_code` and `vector_quantize` take in place of `codebook`.

    Raises:
        TypeError, ValueError: wrong type, dtype or shape, or an entry whose squared norm overflows float32.
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
    check_dtype(op, "codebook", codebook.dtype)


def check(op: str, z: Tensor, codebook: Tensor | PackedCodebook) -> tuple[Tensor, Tensor | None]:
    """Check z [..., D] and the codebook for the op named `op`.

    Returns:
        The codebook [K, D], and its packed form or None.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device; the message names which.
    """
    codebook, packed = codebook if isinstance(codebook, PackedCodebook) else (codebook, None)
    _check_codebook(op, codebook)
    check_tensors(op, z=z)
    if z.dim() < 1 or z.shape[-1] != codebook.shape[1]:
        width = z.shape[-1] if z.dim() else "D"
        raise ValueError(f"{op}: codebook must be [K, {width}] to match z {list(z.shape)}, got {list(codebook.shape)}")
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
    """Find the nearest codebook entry of every vector; all backends return the argmin of exact arithmetic.

    Args:
        z: [..., D] float32, float16, bfloat16 or float64.
        codebook: [K, D], or the result of `pack_codebook`.
        return_margin: also return the gap between the best and the second-best entry.

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
