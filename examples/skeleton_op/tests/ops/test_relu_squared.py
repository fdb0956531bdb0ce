"""relu_squared on the backends that run here, against its formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
from seed_fast.ops.relu_squared import relu_squared

from seed_fast.ops import _native, backend, explain
from seed_fast.testing import check_budget

BACKENDS = ["reference", "cpu"] + ["triton"] * (not _native.triton_unavailable())


@pytest.fixture(params=BACKENDS)
def everywhere(request):
    with backend(request.param):
        yield request.param


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def plain(x):
    return torch.where(x > 0, x * x, torch.zeros_like(x))


@pytest.mark.parametrize("shape", [(), (1,), (7, 31), (3, 40_000), (0, 4)])
def test_values_and_gradients_keep_to_the_budget(everywhere, shape):
    x = draw(*shape).requires_grad_()
    truth = x.detach().double().requires_grad_()
    y = relu_squared(x)
    check_budget(y, plain(truth), plain(x))
    got, exactly, plainly = (torch.autograd.grad(v.sin().sum(), of) for v, of in (
        (y, x), (plain(truth), truth), (plain(x), x)))  # fmt: skip
    check_budget(*got, *exactly, *plainly, factor=3)


def test_strides_are_free_and_nan_stays(everywhere):
    x = draw(8, 6)
    x[2, 3] = math.nan
    assert torch.equal(relu_squared(x.T).nan_to_num(-1), relu_squared(x).T.nan_to_num(-1))
    assert relu_squared(x).isnan().nonzero().tolist() == [[2, 3]]


def test_schema_gradient_and_graph():
    x = draw(5, 3).requires_grad_()
    torch.library.opcheck(torch.ops.seed_fast.relu_squared.default, (x,))
    torch.library.opcheck(torch.ops.seed_fast.relu_squared_backward.default, (torch.ones(5, 3), x.detach()))
    assert torch.autograd.gradcheck(relu_squared, x.detach().double().requires_grad_())
    compiled = torch.compile(relu_squared, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), relu_squared(x))


def test_what_runs_where_is_told_and_wrong_input_is_named():
    assert "cpu: runs" in explain("relu_squared", draw(3))
    assert "cpu: x is float64" in explain("relu_squared", draw(3).double())
    with pytest.raises(TypeError, match=r"^relu_squared: x must be float32 or float64, got torch.int64"):
        relu_squared(torch.arange(3))
    with pytest.raises(TypeError, match=r"^relu_squared: x must be a Tensor, got list"):
        relu_squared([1.0])
