"""bias_gelu: a bias and the exact GELU, in one pass over memory; it follows a matrix product without a bias.

    y = GELU(x + bias),  GELU(s) = s Phi(s) = s (1 + erf(s / sqrt(2))) / 2          computed in float32

x [..., D] and bias [D] are float32, float16 or bfloat16 in any mix (float64: by the reference alone); y is like x. The
sum is not rounded to x's dtype in between. Deterministic. NaN gives NaN; infinities give a limit or NaN.

Gradient: recomputed from x, in float32 (float64 for float64). There is no second derivative.

Source: Hendrycks and Gimpel 2016 (arXiv:1606.08415), equation 2. The official models/seed_qformer/eva_vit.py and
qformer_causual.py have the exact form. The epilogue of cublasLt that fuses GELU into a product has the tanh form, which
is another function, so it is no alternative here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seed_fast.ops import _dispatch, _native
from seed_fast.ops._checks import check_tensors
from seed_fast.ops._native import CUDA_NOTE, TRITON_NOTE
from seed_fast.ops.backends import bias_gelu as backends
from seed_fast.ops.nearest_code import LIBRARY

LIBRARY.define("bias_gelu(Tensor x, Tensor bias) -> Tensor")
LIBRARY.define("bias_gelu_(Tensor(a!) x, Tensor bias) -> ()")
LIBRARY.define("bias_gelu_backward(Tensor grad_y, Tensor x, Tensor bias) -> (Tensor grad_x, Tensor grad_bias)")


def reference(x: Tensor, bias: Tensor) -> Tensor:
    """Compute the definition in plain torch, differentiable: x [N, D], bias [D] -> y [N, D] of x's dtype."""
    precise = _precise(x)
    return F.gelu(x.to(precise) + bias.to(precise)).to(x.dtype)


def reference_backward(grad_y: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradient of `reference`: return grad_x [N, D] of x's dtype and grad_bias [D] of bias's dtype."""
    precise = _precise(x)
    grad = torch.ops.aten.gelu_backward(grad_y.to(precise), x.to(precise) + bias.to(precise))
    return grad.to(x.dtype).contiguous(), grad.sum(0).to(bias.dtype)


def _precise(x: Tensor) -> torch.dtype:
    """Return the dtype of the computation: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


@torch.library.register_fake("seed_fast::bias_gelu", lib=LIBRARY)
def _fake(x: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("seed_fast::bias_gelu_", lib=LIBRARY)
def _fake_in_place(x: Tensor, bias: Tensor) -> None:
    return None


@torch.library.register_fake("seed_fast::bias_gelu_backward", lib=LIBRARY)
def _fake_backward(grad_y: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), bias.new_empty(bias.shape)


def _run(x: Tensor, bias: Tensor) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _dispatch.select("bias_gelu", x, bias).run(x, bias, y)
    return y


def _run_in_place(x: Tensor, bias: Tensor) -> None:
    _dispatch.select("bias_gelu", x, bias).run(x, bias, x)


LIBRARY.impl("bias_gelu", _run, "CompositeExplicitAutograd")
LIBRARY.impl("bias_gelu_", _run_in_place, "CompositeExplicitAutograd")
LIBRARY.impl("bias_gelu_backward", reference_backward, "CompositeExplicitAutograd")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.seed_fast.bias_gelu_backward(grad_y, *ctx.saved_tensors)
    return tuple(grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad, strict=True))


torch.library.register_autograd("seed_fast::bias_gelu", _backward, setup_context=_setup_context, lib=LIBRARY)

_dispatch.register(
    "bias_gelu",
    _dispatch.Backend("cuda", backends.cuda, _native.cuda_unavailable, backends.cuda_objections, CUDA_NOTE),
    _dispatch.Backend("triton", backends.triton, _native.triton_unavailable, backends.triton_objections, TRITON_NOTE),
    _dispatch.Backend("cpu", backends.cpu, _native.cpu_unavailable, backends.cpu_objections),
    _dispatch.Backend("reference", backends.composite, lambda: "", lambda *arguments: []),
)


def bias_gelu(x: Tensor, bias: Tensor, *, inplace: bool = False) -> Tensor:
    """Add a bias and apply the exact (erf) GELU.

    Args:
        x: [..., D] float32, float16, bfloat16 or float64; D >= 1.
        bias: [D], of any of these dtypes.
        inplace: write the result over x, for inference (no gradient). The last axis of x must be contiguous, and its
            other axes must join into one without a copy.

    Returns:
        [..., D] of x's dtype; x itself with `inplace`.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, layout or device; `inplace` where a gradient is wanted.
        BackendError: a forced backend cannot run.

    Examples:
        >>> bias_gelu(torch.zeros(2, 3), torch.tensor([0.0, 1.0, -1.0]))[0]
        tensor([ 0.0000,  0.8413, -0.1587])
    """
    check_tensors("bias_gelu", x=x, bias=bias)
    if bias.device != x.device:
        raise ValueError(f"bias_gelu: bias must be on {x.device} like x, got {bias.device}")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"bias_gelu: x must be [..., D] with D >= 1, got {list(x.shape)}")
    if bias.shape != x.shape[-1:]:
        raise ValueError(f"bias_gelu: bias must be [{x.shape[-1]}] to match x {list(x.shape)}, got {list(bias.shape)}")
    if not inplace:
        y: Tensor = torch.ops.seed_fast.bias_gelu(x.reshape(-1, x.shape[-1]), bias)
        return y.reshape(x.shape)
    if torch.is_grad_enabled() and (x.requires_grad or bias.requires_grad):
        raise ValueError("bias_gelu: inplace=True must be called without a gradient (torch.no_grad), got requires_grad")
    if x.stride(-1) != 1:
        raise ValueError(f"bias_gelu: inplace=True needs x with a contiguous last axis, got strides {x.stride()}")
    try:
        rows = x.view(-1, x.shape[-1])
    except RuntimeError:
        raise ValueError(f"bias_gelu: inplace=True needs x that is rows in memory, got strides {x.stride()}") from None
    torch.ops.seed_fast.bias_gelu_(rows, bias)
    return x
