"""What attention promises as an op beside the contract of all: gradients, and which widths and dtypes go where."""

from __future__ import annotations

import pytest
import torch

from seed_fast.ops import BackendError, attention, backend
from seed_fast.ops.attention import reference
from seed_fast.testing import check_budget
from tests.ops.attention_cases import plain

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
q, k, v = torch.randn(2, 5, 3, 16), torch.randn(2, 7, 3, 16), torch.randn(2, 7, 3, 16)


@pytest.mark.parametrize("causal", [False, True])
def test_gradcheck(causal):
    inputs = [x[:, :4, :2, :4].double().requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *qkv: attention(*qkv, causal=causal), inputs)


def gradients(function, tensors, grad):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    return torch.autograd.grad(function(*leaves), leaves, grad.to(leaves[0].dtype))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize(("lq", "lk", "d"), [(32, 32, 64), (32, 257, 64), (33, 65, 88), (1, 1, 16)])
def test_gradient_error_is_within_three_times_that_of_plain_torch(lq, lk, d, dtype, causal):
    generator = torch.Generator().manual_seed(lq + lk)
    query, grad = torch.randn(2, 2, lq, 2, d, generator=generator).to(dtype).unbind(0)
    tensors = (query, *torch.randn(2, lk, 2, 2, d, generator=generator).to(dtype).unbind(2))
    truth = gradients(lambda *x: plain(*x, causal), [x.double() for x in tensors], grad)
    plainly = gradients(lambda *x: plain(*x, causal), tensors, grad)
    ours = gradients(lambda *x: attention(*x, causal=causal), tensors, grad)
    # With one key the gradients of q and k vanish, but their terms do not: rounding is relative to the largest of all.
    floor = torch.finfo(dtype).eps * max(x.abs().max() for x in truth)
    for got, expected, usual in zip(ours, truth, plainly, strict=True):
        assert got.dtype == dtype
        error, allowed = (got.double() - expected).abs().max(), (usual.double() - expected).abs().max()
        assert error <= 3 * torch.maximum(allowed, floor)


def test_only_the_gradients_that_are_wanted_are_returned():
    key = k.clone().requires_grad_()
    attention(q, key, v).sum().backward()
    assert key.grad is not None
    assert q.grad is None


@pytest.mark.parametrize("d", [1, 8, 12, 136])
def test_other_head_widths_run_on_sdpa_and_forced_kernels_say_why_not(d):
    x = torch.randn(2, 5, 3, d)
    exact = reference(*[x.double()] * 3, False, d**-0.5)
    check_budget(attention(x, x, x), exact, plain(x, x, x, False))
    with backend("cpu"), pytest.raises(BackendError, match=f"head width {d} is not a multiple of 8|not there"):
        attention(x, x, x)


def test_float64_goes_to_the_reference():
    exact = attention(q.double(), k.double(), v.double())
    check_budget(attention(q, k, v), exact, plain(q, k, v, False))


def test_output_is_contiguous_on_every_backend():
    for name in ("sdpa", "reference"):
        with backend(name):
            assert attention(q, k, v).is_contiguous()
    assert attention(q, k, v).is_contiguous()
