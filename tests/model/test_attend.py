"""Attention of the plain modules: training in bfloat16 on a CPU takes another way to the same values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seed_fast.model.attend import attend
from seed_fast.testing import check_budget

SHAPE = (2, 3, 7, 16)  # [B, H, N, d]


def values_and_gradients(function, tensors, dtype, **options):
    leaves = [tensor.detach().to(dtype, copy=True).requires_grad_() for tensor in tensors]
    out = function(*leaves, **options)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=dtype).reshape(out.shape))
    return [value.detach().double() for value in (out, *(leaf.grad for leaf in leaves))]


def official(q, k, v, mask=None, causal=False):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None)


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"mask": "keys"}, {"mask": "keys", "causal": True}], ids=str)
def test_bfloat16_training_stays_within_the_budget_of_torchs_own_attention(options):
    torch.manual_seed(0)
    tensors = [torch.randn(SHAPE).bfloat16().double() for _ in range(3)]
    if "mask" in options:
        options = {**options, "mask": torch.arange(7)[None, None, None] < torch.tensor([5, 7])[:, None, None, None]}
    truth = values_and_gradients(official, tensors, torch.float64, **options)
    peer = values_and_gradients(official, tensors, torch.bfloat16, **options)
    ours = values_and_gradients(attend, tensors, torch.bfloat16, **options)
    for name, true, theirs, got in zip(("out", "q", "k", "v"), truth, peer, ours, strict=True):
        budget = 3 * (theirs - true).square().mean().sqrt()
        assert (got - true).square().mean().sqrt() <= budget, name


@pytest.mark.parametrize("causal", [False, True])
def test_dropout_in_bfloat16_training_keeps_the_mean_and_the_causal_order(causal):
    torch.manual_seed(0)
    q, k, v = (torch.randn(SHAPE).bfloat16().requires_grad_() for _ in range(3))
    mean = sum(attend(q, k, v, dropout=0.25, causal=causal).float() for _ in range(600)) / 600
    exact = official(q, k, v, causal=causal).float()
    assert (mean - exact).abs().mean() < 0.05 * exact.abs().mean()
    first = attend(q, k, v, dropout=0.0, causal=causal)[:, :, 0]
    exact = official(q.double(), k.double(), v.double(), causal=causal)[:, :, 0]
    check_budget(first, exact, official(q, k, v, causal=causal)[:, :, 0])


def test_float32_is_torchs_attention_to_the_bit():
    torch.manual_seed(0)
    q, k, v = (torch.randn(SHAPE, requires_grad=True) for _ in range(3))
    assert torch.equal(attend(q, k, v, causal=True), official(q, k, v, causal=True))
