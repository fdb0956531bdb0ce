"""The CUDA kernels of add_layer_norm on a GPU: values and gradients.

Without a GPU the kernels themselves run in csrc/tests/add_layer_norm_cuda_test.cpp, which executes them on the host.
"""

from __future__ import annotations

import math

import pytest
import torch

from seed_fast.ops import add_layer_norm
from seed_fast.ops.add_layer_norm import reference
from seed_fast.ops.backends import add_layer_norm as backends
from seed_fast.testing import check_budget
from tests.ops.contract import DTYPES, on_gpu
from tests.ops.test_add_layer_norm import exact, plain

SHAPES = [(1, 1), (3, 32), (5, 31), (64, 96), (33, 768), (257, 1408), (16448, 1408), (3, 2052), (5, 8192), (2, 8200)]


def draw(n, d, delta_dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + 31 * n + d)
    x, delta = (torch.randn(n, d, generator=generator).cuda() for _ in range(2))
    weight, bias = (torch.randn(d, generator=generator).cuda() * 0.1 for _ in range(2))
    return x, delta.to(delta_dtype), weight + 1, bias


def check(arguments, out_dtype, post_norm, eps=1e-6):
    torch.empty(arguments[0].numel() * 2, device="cuda").fill_(math.nan)  # what the allocator hands out next
    got = add_layer_norm(*arguments, eps, out_dtype=out_dtype, post_norm=post_norm)
    truth, peer = exact(*arguments, eps, post_norm), plain(*arguments, eps, out_dtype, post_norm)
    for mine, true, theirs in zip(got, truth, peer, strict=True):
        check_budget(mine, true, theirs)


@on_gpu
@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_within_twice_that_of_plain_torch(cuda, shape, dtype, post_norm):
    check(draw(*shape, dtype), dtype, post_norm)


@on_gpu
def test_unaligned_rows_and_other_dtypes(cuda):
    x, delta, weight, bias = draw(9, 1412)
    for dtype in DTYPES:
        check((x.to(dtype), delta, weight.half(), bias.half()), torch.bfloat16, False)
    check((x[:, 1:1409], delta[:, 3:1411], weight[1:1409], bias[1:1409]), torch.float32, True)
    check((x[:, 4:1408], delta[:, 4:1408], weight[4:1408], bias[4:1408]), torch.float32, False)


@on_gpu
def test_constant_rows_and_rows_with_nan(cuda):
    x, delta, weight, bias = draw(6, 1408)
    x[3], delta[3] = 0.1, 0.0
    x[4, 7] = math.nan
    y = add_layer_norm(x, delta, weight, bias, 1e-12)[1]
    assert torch.equal(y[3], bias)
    assert y.isnan().any(1).tolist() == [False, False, False, False, True, False]


@on_gpu
def test_the_kernel_may_write_the_stream_over_x(cuda):
    for d in (97, 1408, 4096):
        x, delta, weight, bias = draw(300, d)
        stream, y, again = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        backends.cuda(x, delta, weight, bias, 1e-6, False, stream, y)
        backends.cuda(x, delta, weight, bias, 1e-6, False, x, again)
        assert torch.equal(x, stream)
        assert torch.equal(again, y)


@on_gpu
def test_gradients_are_those_of_the_definition(cuda):
    tensors = [t.requires_grad_() for t in draw(64, 1408)]
    truth = [t.detach().double().requires_grad_() for t in tensors]
    weights = torch.randn(64, 1408, device="cuda")

    def gradients(run, inputs):
        x, y = run(*inputs)
        return torch.autograd.grad((x.sin() + y * weights).sum(), inputs)

    for post_norm in (False, True):
        got = gradients(lambda *t: add_layer_norm(*t, 1e-6, post_norm=post_norm), tensors)  # noqa: B023
        exactly = gradients(lambda *t: reference(*t, 1e-6, torch.float64, post_norm), truth)  # noqa: B023
        plainly = gradients(lambda *t: plain(*t, 1e-6, torch.float32, post_norm), tensors)  # noqa: B023
        for each in zip(got, exactly, plainly, strict=True):
            check_budget(*each, factor=3)
