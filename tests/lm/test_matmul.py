"""Matrix products of training, with oneDNN and without: torch's results, gradients, and views as they come."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from seed_fast.lm.matmul import Linear, add_times, linear, times, times_into, use_fast_linears
from seed_fast.testing import error_ratio


@pytest.fixture(params=["onednn", "mkl", ""], autouse=True)
def library(request, monkeypatch):
    monkeypatch.setenv("SEED_FAST_PRODUCTS", request.param)


def near(found, x, y, added=0.0):
    exact = x.double() @ y.double().T + added
    plain = (x @ y.T + added).double()
    budget = max((plain - exact).norm(), torch.finfo(torch.float32).eps * exact.norm())
    assert (found.double() - exact).norm() <= 2 * budget


@pytest.mark.parametrize("transposed", [False, True])
def test_products_are_torchs(transposed):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(33, 48, generator=generator)
    y = torch.randn(48, 21, generator=generator).T if transposed else torch.randn(21, 48, generator=generator)
    near(times(x, y), x, y)
    near(times(x.T.contiguous().T, y), x, y)
    wide = torch.full((33, 50), torch.nan)
    near(times_into(wide[:, 7:28], x, y), x, y)
    assert wide[:, :7].isnan().all()
    assert wide[:, 28:].isnan().all()
    start = torch.randn(33, 21, generator=generator)
    near(add_times(start.clone(), x, y), x, y, start)
    bias = torch.randn(21, generator=generator)
    near(linear(x, y, bias), x, y, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_fast_linear_layer_is_torchs(dtype, bias):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(24, 40, bias=bias), nn.ReLU(), nn.Linear(40, 8, bias=bias)).to(dtype)
    fast = copy.deepcopy(plain)
    assert use_fast_linears(fast) == 2
    assert isinstance(fast[0], Linear)
    assert list(fast.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 9, 24, dtype=dtype)
    exact = copy.deepcopy(plain).double()
    found, wanted, true = (
        step(model, x.to(next(model.parameters()).dtype).requires_grad_()) for model in (fast, plain, exact)
    )
    for one, two, three in zip(found, wanted, true, strict=True):
        assert one.dtype == dtype
        assert torch.equal(one, two) or error_ratio(one, two, three) <= 3


def step(model, x):
    """The output, and all gradients of the sum of its squares."""
    out = model(x)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *model.parameters()])]


def test_autocast_stays_autocast():
    layer = nn.Linear(8, 8)
    use_fast_linears(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, 8)).dtype == torch.bfloat16
