"""The chunked cross-entropy against float64, in every dtype; what it never allocates; the trap of small gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seed_fast.lm import loss as module
from seed_fast.lm.loss import linear_cross_entropy
from seed_fast.testing import check_budget

N, V, D = 37, 101, 16


def problem(dtype=torch.float32, count=N, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, D, generator=generator).mul_(scale).to(dtype)
    weight = torch.randn(V, D, generator=generator).to(dtype)
    return hidden, weight, torch.randint(V, (count,), generator=generator)


def truth(hidden, weight, targets):
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    loss = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


def parts_of(weight, trained=(False, True, False)):
    parts = [weight[:40].clone(), weight[40:77].clone().float(), weight[77:].clone()]
    return [part.requires_grad_(wanted) for part, wanted in zip(parts, trained, strict=True)]


@pytest.fixture(params=[16, 10_000], ids=["chunks", "one"])
def rows(request, monkeypatch):
    monkeypatch.setattr(module, "chunk_rows", lambda words: request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_and_gradients_are_those_of_float64(rows, dtype):
    hidden, weight, targets = problem(dtype)
    expected, d_hidden, d_weight = truth(hidden, weight, targets)
    parts = parts_of(weight)
    hidden.requires_grad_()
    loss = linear_cross_entropy(hidden, parts, targets)
    loss.backward()
    plain_hidden, plain_weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
    plain = F.cross_entropy((plain_hidden @ plain_weight.T).float(), targets, reduction="sum")
    plain.backward()
    check_budget(loss, expected, plain)
    for found, naive, exact in (
        (hidden.grad, plain_hidden.grad, d_hidden),
        (parts[1].grad, plain_weight.grad[40:77], d_weight[40:77]),
    ):
        assert (found - exact).norm() <= 3 * (naive - exact).norm()
    assert parts[0].grad is None
    assert parts[2].grad is None


def test_gradients_follow_a_factor_on_the_loss(rows):
    hidden, weight, targets = problem()
    _, d_hidden, _ = truth(hidden, weight, targets)
    hidden.requires_grad_()
    (linear_cross_entropy(hidden, [weight], targets) * 2.5 / N).backward()
    plain = hidden.detach().clone().requires_grad_()
    (F.cross_entropy(plain @ weight.T, targets) * 2.5).backward()
    check_budget(hidden.grad, d_hidden * 2.5 / N, plain.grad, factor=3)


def test_small_gradients_survive_float16():
    """A mean over 10^6 positions with a loss scale of 2^20: what is formed as p / n is lost before it is scaled."""
    hidden, weight, targets = problem(torch.float16, scale=0.01)
    _, d_hidden, _ = truth(hidden, weight, targets)
    n = 1e6
    hidden.requires_grad_()
    (linear_cross_entropy(hidden, [weight], targets) / n * 2**20).backward()
    expected = d_hidden / n * 2**20
    in_float32 = hidden.detach().float().requires_grad_()
    (F.cross_entropy(in_float32 @ weight.float().T, targets, reduction="sum") / n * 2**20).backward()
    check_budget(hidden.grad, expected, in_float32.grad.half(), factor=3)
    p = ((hidden.detach().double() @ weight.double().T).softmax(1) / n).half()
    assert (p == 0).double().mean() > 0.9  # the trap


def test_one_word_everywhere_does_not_overflow_float16():
    hidden, weight, _ = problem(torch.float16, count=4096, scale=10.0)
    hidden = hidden.abs_().requires_grad_()
    learned = weight.float().mul_(0.01).requires_grad_()
    targets = torch.full((4096,), 3)
    linear_cross_entropy(hidden, [learned], targets).backward()
    assert learned.grad.isfinite().all()
    assert hidden.grad.isfinite().all()


def test_the_largest_tensor_is_a_chunk(monkeypatch):
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    monkeypatch.setattr(module, "chunk_rows", lambda words: 16)
    hidden, weight, targets = problem(count=1000)
    weight = weight[:, :8].contiguous()
    hidden = hidden[:, :8].contiguous().requires_grad_()
    with Watch():
        linear_cross_entropy(hidden, [weight], targets).backward()
    assert max(sizes) == max(16 * V, hidden.numel()) < 1000 * V / 10


def test_no_position_is_a_loss_of_zero_with_gradients():
    hidden, weight, targets = problem(count=0)
    parts = parts_of(weight)
    hidden.requires_grad_()
    loss = linear_cross_entropy(hidden, parts, targets)
    loss.backward()
    assert loss == 0
    assert hidden.grad.shape == (0, D)
    assert torch.equal(parts[1].grad, torch.zeros_like(parts[1]))


def test_without_gradients_none_are_formed(monkeypatch):
    hidden, weight, targets = problem()
    monkeypatch.setattr(torch.Tensor, "scatter_add_", lambda *_: pytest.fail("formed a gradient"))
    with torch.no_grad():
        loss = linear_cross_entropy(hidden.requires_grad_(), [weight], targets)
    assert not loss.requires_grad


def test_what_does_not_fit_is_named():
    hidden, weight, targets = problem()
    with pytest.raises(ValueError, match=r"weights must be \[V, D\] for hidden \[N, D\], got \[\[101, 15\]\] for"):
        linear_cross_entropy(hidden, [weight[:, :-1]], targets)
    with pytest.raises(ValueError, match=r"targets must be \[37\], one per position, got \[36\]"):
        linear_cross_entropy(hidden, [weight], targets[1:])


def test_a_chunk_stays_within_its_bytes():
    assert 0.9 < module.chunk_rows(58_459) * 58_459 * 4 / module.CHUNK_BYTES <= 1
    assert module.chunk_rows(10**9) == 16
