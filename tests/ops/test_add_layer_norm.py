"""add_layer_norm on the backends that run on a CPU, against its formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from seed_fast.ops import add_layer_norm, backend, explain
from seed_fast.ops.backends import add_layer_norm as backends
from seed_fast.testing import check_budget
from tests.ops.contract import DTYPES, ISAS, backends_of_a_cpu, needs_native

everywhere = backends_of_a_cpu("reference")
SHAPES = [(1, 1), (1, 7), (5, 31), (64, 96), (3, 768), (257, 1408), (2, 8192), (0, 8)]


def draw(n, d, x_dtype=torch.float32, delta_dtype=torch.float32, *, magnitude=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed + 31 * n + d)
    x, delta = (torch.randn(n, d, generator=generator) * magnitude for _ in range(2))
    weight, bias = (torch.randn(d, generator=generator) * 0.1 for _ in range(2))
    return x.to(x_dtype), delta.to(delta_dtype), weight + 1, bias


def plain(x, delta, weight, bias, eps, out_dtype, post_norm=False):
    """What an eager model computes: a sum, a norm in float32, a cast."""
    total = (x + delta).to(x.dtype)
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = F.layer_norm(total.to(wide), weight.shape, weight.to(wide), bias.to(wide), eps)
    return norm.to(x.dtype) if post_norm else total, norm.to(out_dtype)


def exact(x, delta, weight, bias, eps, post_norm=False):
    """Sum as the stream holds it, norm in float64."""
    total = (x + delta).to(x.dtype).double()
    norm = F.layer_norm(total, weight.shape, weight.double(), bias.double(), eps)
    return norm if post_norm else total, norm


def check(arguments, eps=1e-6, out_dtype=torch.float32, post_norm=False):
    """Both results within the budget of plain torch, whose shapes and dtypes they have."""
    got = add_layer_norm(*arguments, eps, out_dtype=out_dtype, post_norm=post_norm)
    truth, peer = exact(*arguments, eps, post_norm), plain(*arguments, eps, out_dtype, post_norm)
    for mine, true, theirs in zip(got, truth, peer, strict=True):
        check_budget(mine, true, theirs)
    return got


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_within_twice_that_of_plain_torch(everywhere, poisoned, shape, dtype, post_norm):
    check(draw(*shape, delta_dtype=dtype), out_dtype=dtype, post_norm=post_norm)


@pytest.mark.parametrize("post_norm", [False, True])
def test_every_mix_of_dtypes(everywhere, poisoned, post_norm):
    for x_dtype in DTYPES:
        for delta_dtype in DTYPES:
            for out_dtype in DTYPES:
                check(draw(4, 40, x_dtype, delta_dtype), out_dtype=out_dtype, post_norm=post_norm)


def test_the_sum_is_that_of_torch_to_the_last_bit(everywhere):
    for dtype in DTYPES:
        x, delta, weight, bias = draw(5, 77, dtype, torch.bfloat16)
        assert torch.equal(add_layer_norm(x, delta, weight, bias, 1e-6)[0], (x + delta).to(dtype))


@needs_native
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 200), st.sampled_from(DTYPES), st.booleans(), st.sampled_from(ISAS))
def test_any_shape_on_any_instruction_set(n, d, dtype, post_norm, isa):
    with pytest.MonkeyPatch.context() as patch, backend("cpu"):
        patch.setenv("SEED_FAST_CPU_ISA", isa)
        check(draw(n, d, delta_dtype=dtype), out_dtype=dtype, post_norm=post_norm)


@pytest.mark.parametrize("magnitude", [1e-30, 1e-4, 1e4, 1e15])
def test_large_and_tiny_magnitudes(everywhere, magnitude):
    for d in (1, 96, 1411):
        check(draw(3, d, magnitude=magnitude), eps=1e-12)


def test_rows_far_from_zero_and_rows_with_an_outlier(everywhere):
    x, delta, weight, bias = draw(6, 1408)
    check((x + 4096, delta, weight, bias))
    for at in (0, 700):
        x[:, at] = 3000.0
        check((x, delta, weight, bias))


@pytest.mark.parametrize("value", [0.0, 0.1, -3333.3, 1e15])
def test_the_norm_of_a_constant_row_is_the_bias(everywhere, value):
    for d in (1, 31, 1408):
        _, _, weight, bias = draw(1, d)
        x, y = add_layer_norm(torch.full((2, d), value), torch.zeros(2, d), weight, bias, 1e-12)
        assert torch.equal(y, bias.expand(2, d))
        assert torch.equal(x, torch.full((2, d), value))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_become_nan_and_leave_the_others_alone(everywhere, bad):
    x, delta, weight, bias = draw(6, 33)
    expected = add_layer_norm(x, delta, weight, bias, 1e-6)[1]
    x[2, 5] = bad
    y = add_layer_norm(x, delta, weight, bias, 1e-6)[1]
    assert y[2].isnan().all()
    assert torch.equal(y[[0, 1, 3, 4, 5]], expected[[0, 1, 3, 4, 5]])


def test_any_number_of_axes_and_any_strides(everywhere):
    x, delta, weight, bias = draw(24, 40)
    expected = add_layer_norm(x, delta, weight, bias, 1e-6)
    layouts = {
        "axes": lambda t: t.view(2, 3, 4, 40),
        "transposed": lambda t: t.T.contiguous().T,
        "wide rows": lambda t: torch.cat([t, t], 1)[:, :40],
        "every other column": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    }
    for layout in layouts.values():
        got = add_layer_norm(layout(x), layout(delta), weight, bias, 1e-6)
        for mine, theirs in zip(got, expected, strict=True):
            assert torch.equal(mine, theirs.view(mine.shape))
    every_other = [t.repeat_interleave(2)[::2] for t in (weight, bias)]
    assert torch.equal(add_layer_norm(x, delta, *every_other, 1e-6)[1], expected[1])
    repeated = add_layer_norm(x[:1].expand(24, 40), delta, weight, bias, 1e-6)[1]
    assert torch.equal(repeated, add_layer_norm(x[:1].repeat(24, 1), delta, weight, bias, 1e-6)[1])
    check((x[0], delta[0], weight, bias))


def test_post_norm_of_one_dtype_gives_one_tensor_for_both(everywhere):
    arguments = draw(4, 32)
    x, y = add_layer_norm(*arguments, 1e-6, post_norm=True)
    assert x.data_ptr() == y.data_ptr()
    assert torch.equal(y, add_layer_norm(*arguments, 1e-6)[1])


@needs_native
def test_the_kernel_may_write_the_stream_over_x(everywhere):
    if everywhere == "reference":
        pytest.skip("is the kernel's")
    for post_norm in (False, True):
        x, delta, weight, bias = draw(40, 97)
        stream, y, again = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        backends.cpu(x, delta, weight, bias, 1e-6, post_norm, stream, y)
        backends.cpu(x, delta, weight, bias, 1e-6, post_norm, x, again)
        assert torch.equal(x, stream)
        assert torch.equal(again, y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("post_norm", [False, True])
def test_gradients_stay_within_three_times_those_of_plain_torch(everywhere, dtype, post_norm):
    tensors = draw(16, 96, delta_dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(16, 96, generator=generator) for _ in range(2)]

    def gradients(run, precise=False):
        inputs = [(t.double() if precise else t.clone()).detach().requires_grad_() for t in tensors]
        results = run(*inputs, 1e-6, torch.float64 if precise else dtype, post_norm)
        loss = sum((r.double() * w.double()).sum() for r, w in zip(results, weights, strict=True))
        return torch.autograd.grad(loss, inputs)

    def ours(*arguments):
        return add_layer_norm(*arguments[:5], out_dtype=arguments[5], post_norm=arguments[6])

    for each in zip(gradients(ours), gradients(plain, precise=True), gradients(plain), strict=True):
        check_budget(*each, factor=3)


@pytest.mark.parametrize("post_norm", [False, True])
def test_gradcheck(post_norm):
    tensors = [t.double().requires_grad_() for t in draw(5, 7)]
    for out_dtype in (torch.float64, None):
        run = lambda *t: add_layer_norm(*t, 0.1, out_dtype=out_dtype, post_norm=post_norm)  # noqa: E731, B023
        assert torch.autograd.gradcheck(run, tensors)
    # With one result wanted, or one input.
    assert torch.autograd.gradcheck(lambda *t: add_layer_norm(*t, 0.1)[0], tensors)
    assert torch.autograd.gradcheck(
        lambda w: add_layer_norm(tensors[0].detach(), tensors[1].detach(), w, tensors[3].detach(), 0.1)[1], tensors[2]
    )


def test_a_kernel_says_which_tensor_is_float64():
    tensors = draw(3, 8)
    options = (1e-6, torch.float32, False)
    assert "x is float64" in explain("add_layer_norm", tensors[0].double(), *tensors[1:], *options)
    assert "out_dtype is float64" in explain("add_layer_norm", *tensors, 1e-6, torch.float64, False)
