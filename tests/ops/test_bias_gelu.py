"""bias_gelu on the backends that run on a CPU, against its formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from seed_fast.ops import backend, bias_gelu
from seed_fast.testing import check_budget
from tests.ops.contract import DTYPES, ISAS, backends_of_a_cpu, needs_native

everywhere = backends_of_a_cpu("reference")
SHAPES = [(1, 1), (1, 7), (5, 31), (64, 96), (3, 3072), (257, 640), (0, 8)]


def draw(n, d, dtype=torch.float32, bias_dtype=None, *, magnitude=1.0):
    generator = torch.Generator().manual_seed(31 * n + d)
    x, bias = torch.randn(n, d, generator=generator), torch.randn(d, generator=generator)
    return (x * magnitude).to(dtype), (bias * magnitude).to(bias_dtype or dtype)


def exact(x, bias):
    """x Phi(x), by erfc: 1 + erf would cancel."""
    total = x.double() + bias.double()
    return 0.5 * total * torch.special.erfc(total * -(0.5**0.5))


def check(x, bias):
    """Within the budget of plain torch in the same dtype."""
    got = bias_gelu(x, bias)
    check_budget(got, exact(x, bias), F.gelu(x + bias).to(x.dtype))
    return got


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_within_twice_that_of_plain_torch(everywhere, poisoned, shape, dtype):
    for bias_dtype in DTYPES:
        check(*draw(*shape, dtype, bias_dtype))


@needs_native
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 200), st.sampled_from(DTYPES), st.sampled_from(ISAS))
def test_any_shape_on_any_instruction_set(n, d, dtype, isa):
    with pytest.MonkeyPatch.context() as patch, backend("cpu"):
        patch.setenv("SEED_FAST_CPU_ISA", isa)
        check(*draw(n, d, dtype))


@pytest.mark.parametrize("magnitude", [1e-30, 1e-4, 1e4, 1e30])
def test_large_and_tiny_magnitudes(everywhere, magnitude):
    check(*draw(3, 97, magnitude=magnitude))


@needs_native
def test_small_results_are_as_precise_as_large_ones():
    x = torch.linspace(-13, 13, 4001)[None]
    for isa in ISAS:
        with pytest.MonkeyPatch.context() as patch, backend("cpu"):
            patch.setenv("SEED_FAST_CPU_ISA", isa)
            got = bias_gelu(x, torch.zeros(4001)).double()
        true = exact(x, torch.zeros(4001))
        # In the tail, exp(-x^2 / 2) has as many roundings more as its exponent is large.
        assert ((got - true).abs() <= (16 + x.double() ** 2) * 2**-24 * true.abs() + 2**-125).all()


def test_nan_and_infinity_change_no_other_element(everywhere):
    x = torch.zeros(2, 40)
    x[0, 3], x[0, 20] = math.nan, math.inf
    y = bias_gelu(x, torch.zeros(40))
    assert y[0, 3].isnan()
    assert not y[0, 20].isfinite()
    assert (y.isfinite().logical_not().sum(), y[1].abs().max()) == (2, 0)


def test_any_number_of_axes_and_any_strides(everywhere):
    x, bias = draw(24, 40)
    expected = bias_gelu(x, bias)
    for layout in (
        lambda t: t.view(2, 3, 4, 40),
        lambda t: t.T.contiguous().T,
        lambda t: torch.cat([t, t], 1)[:, :40],
        lambda t: t.repeat_interleave(2, 1)[:, ::2],
    ):
        got = check(layout(x), bias.repeat_interleave(2)[::2])
        if everywhere != "reference":  # torch's own GELU of other strides differs in the last digits
            assert torch.equal(got, expected.view(got.shape))
    check(x[0], bias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_gives_the_same_without_new_memory(everywhere, dtype):
    x, bias = draw(24, 40, dtype)
    expected = bias_gelu(x, bias)
    axes = x.clone().view(2, 12, 40)
    assert bias_gelu(axes, bias, inplace=True) is axes
    assert torch.equal(axes.view(24, 40), expected)
    wide = torch.cat([x, x], 1)
    bias_gelu(wide[:, :40], bias, inplace=True)
    assert torch.equal(wide, torch.cat([expected, x], 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_stay_within_three_times_those_of_plain_torch(everywhere, dtype):
    tensors = draw(16, 96, dtype)
    weights = torch.randn(16, 96, generator=torch.Generator().manual_seed(1))

    def gradients(run, precise=False):
        inputs = [(t.double() if precise else t.clone()).detach().requires_grad_() for t in tensors]
        return torch.autograd.grad((run(*inputs).double() * weights.double()).sum(), inputs)

    def plain(x, bias):
        return F.gelu(x + bias)

    for each in zip(gradients(bias_gelu), gradients(plain, precise=True), gradients(plain), strict=True):
        check_budget(*each, factor=3)


def test_gradcheck():
    tensors = [t.double().requires_grad_() for t in draw(5, 7)]
    assert torch.autograd.gradcheck(bias_gelu, tensors)
    assert torch.autograd.gradcheck(lambda b: bias_gelu(tensors[0].detach(), b), tensors[1])


def test_in_place_compiles_to_one_graph(everywhere):
    def run(x, bias):
        return bias_gelu(x * 2, bias, inplace=True) + 1

    torch._dynamo.reset()
    x, bias = draw(6, 24)
    with torch.no_grad():
        expected = run(x, bias)
        assert torch.equal(torch.compile(run, fullgraph=True, backend="aot_eager")(x, bias), expected)
