"""The CUDA kernels of bias_gelu on a GPU: values and gradients.

Without a GPU the kernels themselves run in csrc/tests/bias_gelu_cuda_test.cpp, which executes them on the host.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from seed_fast.ops import bias_gelu
from seed_fast.testing import check_budget
from tests.ops.contract import DTYPES, on_gpu
from tests.ops.test_bias_gelu import exact

SHAPES = [(1, 1), (3, 32), (5, 31), (64, 96), (32, 3072), (257, 6144), (16448, 6144), (70001, 40)]


def draw(n, d, dtype=torch.float32):
    generator = torch.Generator().manual_seed(31 * n + d)
    return [torch.randn(*size, generator=generator).to("cuda", dtype) for size in ((n, d), (d,))]


def check(x, bias):
    torch.empty(x.numel(), device="cuda").fill_(math.nan)  # what the allocator hands out next is no old result
    check_budget(bias_gelu(x, bias), exact(x, bias), F.gelu(x + bias).to(x.dtype))


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_within_twice_that_of_plain_torch(cuda, shape, dtype):
    check(*draw(*shape, dtype))


@on_gpu
def test_unaligned_rows_and_other_dtypes(cuda):
    x, bias = draw(9, 1412)
    for dtype in DTYPES:
        check(x.to(dtype), bias.half())
    check(x[:, 1:1409], bias[3:1411])


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_gives_the_same(cuda, dtype):
    x, bias = draw(300, 6144, dtype)
    expected = bias_gelu(x, bias)
    assert torch.equal(bias_gelu(x, bias, inplace=True), expected)


@on_gpu
def test_small_results_are_as_precise_as_large_ones(cuda):
    x, bias = torch.linspace(-13, 13, 4001, device="cuda")[None], torch.zeros(4001, device="cuda")
    true = exact(x, bias)
    allowed = (16 + x.double() ** 2) * 2**-24 * true.abs() + 2**-125
    assert ((bias_gelu(x, bias).double() - true).abs() <= allowed).all()


@on_gpu
def test_gradients_are_those_of_the_definition(cuda):
    tensors = [t.requires_grad_() for t in draw(64, 768)]
    truth = [t.detach().double().requires_grad_() for t in tensors]
    got = torch.autograd.grad(bias_gelu(*tensors).sin().sum(), tensors)
    exactly, plainly = (torch.autograd.grad(F.gelu(x + bias).sin().sum(), (x, bias)) for x, bias in (truth, tensors))
    for each in zip(got, exactly, plainly, strict=True):
        check_budget(*each, factor=3)
