"""relu_squared: the square of what is positive.

    y = max(x, 0)^2                                                                       in x's dtype

x [...] is float32 (float64: by the reference alone), with any strides; y is like x. Deterministic. NaN gives NaN.

Gradient: 2 max(x, 0) grad_y, from x alone.

Source: So et al. 2021 (arXiv:2109.08668), section 4.1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seed_fast.ops import _dispatch, _native
from seed_fast.ops.backends import relu_squared as backends
from seed_fast.ops.nearest_code import LIBRARY

# Schema: the op, and its gradient as an op of its own, so that a compiled training step is one graph too.
LIBRARY.define("relu_squared(Tensor x) -> Tensor")
LIBRARY.define("relu_squared_backward(Tensor grad_y, Tensor x) -> Tensor")


def reference(x: Tensor) -> Tensor:
    """Compute the definition in plain torch: x [...] -> y [...]; the fallback, the tests and the benchmark use it."""
    return x.relu().square()


def reference_backward(grad_y: Tensor, x: Tensor) -> Tensor:
    """Compute the gradient of `reference`: grad_y [...], x [...] -> grad_x [...]."""
    return (2 * x.relu() * grad_y).contiguous()


# Fake: what comes back, as shapes and dtypes alone.
@torch.library.register_fake("seed_fast::relu_squared", lib=LIBRARY)
def _fake(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("seed_fast::relu_squared_backward", lib=LIBRARY)
def _fake_backward(grad_y: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _run(x: Tensor) -> Tensor:
    return _dispatch.select("relu_squared", x).run(x)


LIBRARY.impl("relu_squared", _run, "CompositeExplicitAutograd")
LIBRARY.impl("relu_squared_backward", reference_backward, "CompositeExplicitAutograd")


# Autograd.
def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_y: Tensor) -> Tensor:
    return torch.ops.seed_fast.relu_squared_backward(grad_y, *ctx.saved_tensors)


torch.library.register_autograd("seed_fast::relu_squared", _backward, setup_context=_setup_context, lib=LIBRARY)

# Backends, in order of preference; the last one takes everything.
_dispatch.register(
    "relu_squared",
    _dispatch.Backend("triton", backends.triton, _native.triton_unavailable, backends.triton_objections),
    _dispatch.Backend("cpu", backends.cpu, _native.cpu_unavailable, backends.cpu_objections),
    _dispatch.Backend("reference", backends.composite, lambda: "", lambda *arguments: []),
)


def relu_squared(x: Tensor) -> Tensor:
    """Square what is positive, and set the rest to zero.

    Args:
        x: [...] float32 or float64.

    Returns:
        [...] of x's dtype, contiguous.

    Raises:
        TypeError: x is no Tensor, or of another dtype.
        BackendError: a forced backend cannot run.

    Examples:
        >>> relu_squared(torch.tensor([-1.0, 3.0]))
        tensor([0., 9.])
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"relu_squared: x must be a Tensor, got {type(x).__name__}")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"relu_squared: x must be float32 or float64, got {x.dtype}")
    y: Tensor = torch.ops.seed_fast.relu_squared(x)
    return y
