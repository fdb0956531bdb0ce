"""add_layer_norm: a residual sum and the layer norm behind it, in one pass over memory.

    s    = x + delta                                                        in float32, rounded to x's dtype
    norm = (s - mean(s)) / sqrt(variance(s) + eps) * weight + bias          per row, in float32; variance over D, biased
    pre-norm (default):  the residual stream goes on from the sum:   returns (s, norm)
    post_norm=True:      the residual stream goes on from the norm:  returns (norm, norm)

x [..., D] is the residual stream; the first result has its dtype. The second result is the input of the next matrix
product; it has `out_dtype`, so no further pass casts it. delta [..., D], weight [D] and bias [D] may have any dtype.
float32, float16, bfloat16; float64 by the reference alone. Deterministic. Rows with NaN or infinity become NaN. A
constant row has variance 0, so its norm is the bias.

Gradient: recomputed from x and delta by the formula, in float32 (float64 for float64). There is no second derivative.

Source: Ba, Kiros and Hinton 2016 (arXiv:1607.06450). The official ViT, models/seed_qformer/eva_vit.py, is pre-norm; the
Q-Former, qformer_causual.py, is post-norm.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seed_fast.ops import _dispatch, _native
from seed_fast.ops._checks import check_dtype, check_tensors
from seed_fast.ops._native import CUDA_NOTE, TRITON_NOTE
from seed_fast.ops.backends import add_layer_norm as backends
from seed_fast.ops.nearest_code import LIBRARY

LIBRARY.define(
    "add_layer_norm(Tensor x, Tensor delta, Tensor weight, Tensor bias, float eps, ScalarType out_dtype, "
    "bool post_norm) -> (Tensor stream, Tensor y)"
)
LIBRARY.define(
    "add_layer_norm_backward(Tensor grad_stream, Tensor grad_y, Tensor x, Tensor delta, Tensor weight, float eps, "
    "bool post_norm) -> (Tensor grad_sum, Tensor grad_weight, Tensor grad_bias)"
)


def reference(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype, post_norm: bool
) -> tuple[Tensor, Tensor]:
    """Compute the definition in plain torch, differentiable.

    Returns:
        stream [N, D] of x's dtype and y [N, D] of `out_dtype`, from x, delta [N, D] and weight, bias [D].
    """
    precise = _precise(x, delta)
    total = (x.to(precise) + delta.to(precise)).to(x.dtype)
    norm = F.layer_norm(total.to(precise), weight.shape, weight.to(precise), bias.to(precise), eps)
    return norm.to(x.dtype) if post_norm else total, norm.to(out_dtype)


def reference_backward(
    grad_stream: Tensor, grad_y: Tensor, x: Tensor, delta: Tensor, weight: Tensor, eps: float, post_norm: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradient of `reference`, written out.

    Returns:
        The gradients of the sum x + delta (that of x and that of delta alike) [N, D], of weight [D] and of bias [D], in
        float32 (float64 where x or delta is).
    """
    precise = _precise(x, delta)
    total = (x.to(precise) + delta.to(precise)).to(x.dtype).to(precise)
    centred = total - total.mean(1, keepdim=True)
    scale_N1 = (centred.square().mean(1, keepdim=True) + eps).rsqrt()
    normal = centred * scale_N1  # before weight and bias
    grad_norm = grad_y.to(precise) + grad_stream.to(precise) if post_norm else grad_y.to(precise)
    grad = grad_norm * weight.to(precise)
    along = (grad * normal).mean(1, keepdim=True)
    grad_sum = (grad - grad.mean(1, keepdim=True) - normal * along) * scale_N1
    if not post_norm:
        grad_sum = grad_sum + grad_stream.to(precise)
    return grad_sum, (grad_norm * normal).sum(0), grad_norm.sum(0)


def _precise(x: Tensor, delta: Tensor) -> torch.dtype:
    """Return the dtype of sums and statistics: float32, or float64 where an input is."""
    return torch.promote_types(torch.promote_types(x.dtype, delta.dtype), torch.float32)


def _has_stream(x: Tensor, out_dtype: torch.dtype, post_norm: bool) -> bool:
    """Return True if the two results differ. Otherwise both are one tensor, and the op's first result is empty."""
    return not post_norm or out_dtype != x.dtype


@torch.library.register_fake("seed_fast::add_layer_norm", lib=LIBRARY)
def _fake(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype, post_norm: bool
) -> tuple[Tensor, Tensor]:
    stream = x.new_empty(x.shape if _has_stream(x, out_dtype, post_norm) else 0)
    return stream, x.new_empty(x.shape, dtype=out_dtype)


@torch.library.register_fake("seed_fast::add_layer_norm_backward", lib=LIBRARY)
def _fake_backward(
    grad_stream: Tensor, grad_y: Tensor, x: Tensor, delta: Tensor, weight: Tensor, eps: float, post_norm: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_sum = x.new_empty(x.shape, dtype=_precise(x, delta))
    return grad_sum, grad_sum.new_empty(weight.shape), grad_sum.new_empty(weight.shape)


def _run(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype, post_norm: bool
) -> tuple[Tensor, Tensor]:
    has_stream = _has_stream(x, out_dtype, post_norm)
    stream = torch.empty(x.shape if has_stream else 0, dtype=x.dtype, device=x.device)
    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    backend = _dispatch.select("add_layer_norm", x, delta, weight, bias, eps, out_dtype, post_norm)
    backend.run(x, delta, weight, bias, eps, post_norm, stream if has_stream else None, y)
    return stream, y


def _run_backward(
    grad_stream: Tensor, grad_y: Tensor, x: Tensor, delta: Tensor, weight: Tensor, eps: float, post_norm: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if not grad_stream.numel():  # that of the empty first result, see _has_stream
        grad_stream = torch.zeros_like(grad_y)
    return reference_backward(grad_stream, grad_y, x, delta, weight, eps, post_norm)


LIBRARY.impl("add_layer_norm", _run, "CompositeExplicitAutograd")
LIBRARY.impl("add_layer_norm_backward", _run_backward, "CompositeExplicitAutograd")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, delta, weight, bias, ctx.eps, _, ctx.post_norm = inputs
    ctx.bias_dtype = bias.dtype
    ctx.save_for_backward(x, delta, weight)


def _backward(ctx: Any, grad_stream: Tensor, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, delta, weight = ctx.saved_tensors
    grad_sum, grad_weight, grad_bias = torch.ops.seed_fast.add_layer_norm_backward(
        grad_stream, grad_y, x, delta, weight, ctx.eps, ctx.post_norm
    )
    grads = (grad_sum.to(x.dtype), grad_sum.to(delta.dtype), grad_weight.to(weight.dtype), grad_bias.to(ctx.bias_dtype))
    wanted = (grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad, strict=False))
    return *wanted, None, None, None


torch.library.register_autograd("seed_fast::add_layer_norm", _backward, setup_context=_setup_context, lib=LIBRARY)

_dispatch.register(
    "add_layer_norm",
    _dispatch.Backend("cuda", backends.cuda, _native.cuda_unavailable, backends.cuda_objections, CUDA_NOTE),
    _dispatch.Backend("triton", backends.triton, _native.triton_unavailable, backends.triton_objections, TRITON_NOTE),
    _dispatch.Backend("cpu", backends.cpu, _native.cpu_unavailable, backends.cpu_objections),
    _dispatch.Backend("reference", backends.composite, lambda: "", lambda *arguments: []),
)


def add_layer_norm(
    x: Tensor,
    delta: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    out_dtype: torch.dtype | None = None,
    post_norm: bool = False,
) -> tuple[Tensor, Tensor]:
    """Add `delta` to the residual stream `x`, and normalise the sum over its last axis.

    Args:
        x: [..., D] float32, float16, bfloat16 or float64; D >= 1.
        delta: tensor to add, shaped like x, of any of these dtypes.
        weight: [D] scale of the norm, of any of these dtypes.
        bias: [D] shift of the norm, of any of these dtypes.
        eps: number added to the variance; at least 0.
        out_dtype: dtype of the second result; default: x's.
        post_norm: return the norm, not the sum, as the new residual stream.

    Returns:
        The new residual stream [..., D] of x's dtype, and the norm [..., D] of `out_dtype`. With `post_norm` and one
        dtype both are the same tensor.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device.
        BackendError: a forced backend cannot run.

    Examples:
        >>> x, delta = torch.zeros(3, 4), torch.tensor([1.0, 1.0, 3.0, 3.0]).expand(3, 4)
        >>> x, y = add_layer_norm(x, delta, torch.ones(4), torch.zeros(4), 0.0, out_dtype=torch.float16)
        >>> x[0].tolist(), y[0].tolist(), y.dtype
        ([1.0, 1.0, 3.0, 3.0], [-1.0, -1.0, 1.0, 1.0], torch.float16)
    """
    # Types, dtypes and devices first, then the shapes that must match, then the options.
    check_tensors("add_layer_norm", x=x, delta=delta, weight=weight, bias=bias)
    for name, tensor in (("delta", delta), ("weight", weight), ("bias", bias)):
        if tensor.device != x.device:
            raise ValueError(f"add_layer_norm: {name} must be on {x.device} like x, got {tensor.device}")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"add_layer_norm: x must be [..., D] with D >= 1, got {list(x.shape)}")
    if delta.shape != x.shape:
        raise ValueError(f"add_layer_norm: delta must be {list(x.shape)} like x, got {list(delta.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != x.shape[-1:]:
            raise ValueError(
                f"add_layer_norm: {name} must be [{x.shape[-1]}] to match x {list(x.shape)}, got {list(tensor.shape)}"
            )
    if not isinstance(eps, (int, float)) or not 0 <= eps < math.inf:
        raise ValueError(f"add_layer_norm: eps must be a finite number of at least 0, got {eps!r}")
    out_dtype = x.dtype if out_dtype is None else out_dtype
    check_dtype("add_layer_norm", "out_dtype", out_dtype)
    if not isinstance(post_norm, bool):
        raise TypeError(f"add_layer_norm: post_norm must be True or False, got {type(post_norm).__name__}")
    # The op knows matrices alone: leading axes become rows, and come back at the end.
    rows_x, rows_delta = (tensor.reshape(-1, x.shape[-1]) for tensor in (x, delta))
    stream, y = torch.ops.seed_fast.add_layer_norm(rows_x, rows_delta, weight, bias, float(eps), out_dtype, post_norm)
    y = y.reshape(x.shape)
    return (stream.reshape(x.shape) if _has_stream(x, out_dtype, post_norm) else y), y
