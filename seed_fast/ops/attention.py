"""attention: for every query, the average of the values, weighted by the softmax of the query's scores with the keys.

    out[b, i, h] = sum over j of  softmax_j(scale q[b, i, h] . k[b, j, h])  v[b, j, h]

q [B, Lq, H, Dh], k and v [B, Lk, H, Dh], all of one dtype: float32, float16, bfloat16 (float64: by the reference
alone). Any strides: slices of a fused projection are read where they are. Returns [B, Lq, H, Dh], contiguous.
`causal`: query i sees keys 0 .. i (top-left alignment, also where Lq and Lk differ). Scores, softmax and sums are
float32, whatever the inputs are. Deterministic.

Kernels take head widths 16 to 128 in multiples of 8; other widths run on `sdpa`. A query whose visible scores hold NaN
or +inf, or are all -inf, gives NaN. A key that causality hides never matters; a hidden value that is not finite may
make the query's row NaN (weight 0 times inf), as in torch's scaled_dot_product_attention.

Gradient: recomputed, on a CPU by our forward and the fused backward of torch's own attention, elsewhere by the formula
in float32 (float64 for float64). There is no second derivative.

Source: equation 1 of Vaswani et al. 2017 (arXiv:1706.03762); the layers that use it are the self- and
cross-attention of the official models/seed_qformer/qformer_causual.py and the blocks of eva_vit.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from seed_fast.ops import _dispatch, _native
from seed_fast.ops._checks import check_tensors
from seed_fast.ops._native import TRITON_NOTE
from seed_fast.ops.backends import attention as backends
from seed_fast.ops.nearest_code import LIBRARY

LIBRARY.define("attention(Tensor q, Tensor k, Tensor v, bool causal, float scale) -> Tensor")
LIBRARY.define(
    "attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, bool causal, float scale) "
    "-> (Tensor grad_q, Tensor grad_k, Tensor grad_v)"
)


def reference(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """Compute the definition in plain torch, in float32 (float64 for float64); return [B, Lq, H, Dh] of q's dtype."""
    p_BHij = _weights(_heads(q), _heads(k), causal, scale)
    return (p_BHij @ _heads(v)).transpose(1, 2).to(q.dtype).contiguous()


def _heads(x_BLHd: Tensor) -> Tensor:
    """Return x as [B, H, L, Dh] in float32 (float64 for float64)."""
    return x_BLHd.to(torch.promote_types(x_BLHd.dtype, torch.float32)).transpose(1, 2)


def _weights(q_BHid: Tensor, k_BHjd: Tensor, causal: bool, scale: float) -> Tensor:
    """Return the softmax of the scores, [B, H, Lq, Lk]; hidden keys have weight 0."""
    scores_BHij = q_BHid @ k_BHjd.transpose(-1, -2) * scale
    if causal:
        hidden = torch.ones(scores_BHij.shape[-2:], dtype=torch.bool, device=q_BHid.device).triu(1)
        scores_BHij = scores_BHij.masked_fill(hidden, -math.inf)
    return scores_BHij.softmax(-1)


@torch.library.register_fake("seed_fast::attention", lib=LIBRARY)
def _fake(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.register_fake("seed_fast::attention_backward", lib=LIBRARY)
def _fake_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _run(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    return _dispatch.select("attention", q, k, v, causal, scale).run(q, k, v, causal, scale)


def reference_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradient of `reference`, written out; return grad_q, grad_k and grad_v, shaped like q, k and v."""
    grad_BHid, q_BHid, k_BHjd, v_BHjd = (_heads(x) for x in (grad_out, q, k, v))
    p_BHij = _weights(q_BHid, k_BHjd, causal, scale)
    grad_v = p_BHij.transpose(-1, -2) @ grad_BHid
    grad_p_BHij = grad_BHid @ v_BHjd.transpose(-1, -2)
    grad_s_BHij = p_BHij * (grad_p_BHij - (p_BHij * grad_p_BHij).sum(-1, keepdim=True)) * scale
    grads = (grad_s_BHij @ k_BHjd, grad_s_BHij.transpose(-1, -2) @ q_BHid, grad_v)
    grad_q, grad_k, grad_v = (grad.transpose(1, 2).to(q.dtype).contiguous() for grad in grads)
    return grad_q, grad_k, grad_v


def _run_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    # Forcing a backend is strict about the forward; those without a backward of their own use the formula.
    if _dispatch.forced() in ("", "cpu") and not backends.cpu_backward_objections(*arguments):
        return backends.cpu_backward(*arguments)
    return reference_backward(*arguments)


LIBRARY.impl("attention", _run, "CompositeExplicitAutograd")
LIBRARY.impl("attention_backward", _run_backward, "CompositeExplicitAutograd")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.seed_fast.attention_backward(grad_out, *ctx.saved_tensors, ctx.causal, ctx.scale)
    return *(grad if wanted else None for grad, wanted in zip(grads, ctx.needs_input_grad, strict=False)), None, None


torch.library.register_autograd("seed_fast::attention", _backward, setup_context=_setup_context, lib=LIBRARY)

_dispatch.register(
    "attention",
    _dispatch.Backend("cpu", backends.cpu, _native.cpu_unavailable, backends.cpu_objections),
    _dispatch.Backend(
        "cuda",
        backends.cuda,
        _native.cuda_unavailable,
        backends.cuda_objections,
        note="for GPUs older than sm_80; never yet run on a GPU",
    ),
    _dispatch.Backend(
        "sdpa",
        backends.sdpa,
        lambda: "",
        backends.sdpa_objections,
        note="torch's scaled_dot_product_attention; what runs on GPUs from sm_80 on",
    ),
    _dispatch.Backend("triton", backends.triton, _native.triton_unavailable, backends.triton_objections, TRITON_NOTE),
    _dispatch.Backend(
        "xformers",
        backends.xformers,
        _native.xformers_unavailable,
        backends.xformers_objections,
        note="memory_efficient_attention; only on request: nothing measured says that it is ahead of the others",
    ),
    _dispatch.Backend("reference", reference, lambda: "", lambda *arguments: []),
)


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, scale: float | None = None) -> Tensor:
    """Compute multi-head attention of tensors whose third axis is the head, the layout that projections produce.

    Args:
        q: [B, Lq, H, Dh] float32, float16, bfloat16 or float64; any strides.
        k: [B, Lk, H, Dh], Lk >= 1; v like k.
        causal: True if query i may see keys 0 .. i alone.
        scale: factor of the scores; default 1 / sqrt(Dh).

    Returns:
        [B, Lq, H, Dh], contiguous, of q's dtype.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device.
        BackendError: a forced backend cannot run.

    Examples:
        >>> q, k, v = torch.randn(2, 32, 3, 12, 64).unbind(2)
        >>> attention(q, k, v, causal=True).shape
        torch.Size([2, 32, 12, 64])
    """
    # Every tensor by itself and like q, then shapes that must match, then the options.
    check_tensors("attention", q=q, k=k, v=v)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(f"attention: {name} must be [B, L, H, Dh], got {list(x.shape)}")
        if x.dtype != q.dtype:
            raise TypeError(f"attention: {name} must be {q.dtype} like q, got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"attention: {name} must be on {q.device} like q, got {x.device}")
    b, _, h, d = q.shape
    if k.shape[0] != b or k.shape[2:] != q.shape[2:]:
        raise ValueError(f"attention: k must be [{b}, Lk, {h}, {d}] to match q {list(q.shape)}, got {list(k.shape)}")
    if v.shape != k.shape:
        raise ValueError(f"attention: v must be {list(k.shape)} like k, got {list(v.shape)}")
    if k.shape[1] == 0 or d == 0:
        raise ValueError(f"attention: k must have at least one key and Dh at least 1, got {list(k.shape)}")
    if not isinstance(causal, bool):
        raise TypeError(f"attention: causal must be True or False, got {type(causal).__name__}")
    if scale is None:
        scale = 1.0 / math.sqrt(d)
    elif not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ValueError(f"attention: scale must be a finite number, got {scale!r}")
    out: Tensor = torch.ops.seed_fast.attention(q, k, v, causal, float(scale))
    return out
