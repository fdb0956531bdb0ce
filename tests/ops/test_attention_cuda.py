"""The CUDA kernels of attention: when they are chosen, and, on a GPU, what they find.

Without a GPU the kernels themselves run in csrc/tests/attention_cuda_test.cpp, which executes them on the host.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from seed_fast.ops import attention, backend
from seed_fast.ops.attention import reference
from seed_fast.ops.backends.attention import cuda_objections
from seed_fast.testing import check_budget
from tests.ops.attention_cases import plain, structured
from tests.ops.contract import on_gpu

DTYPES = [torch.float32, torch.float16]
SHAPES = [  # B, Lq, Lk, H, Dh: the four of the model, then odd ones
    (8, 32, 32, 12, 64),
    (8, 32, 257, 12, 64),
    (2, 257, 257, 16, 88),
    (1, 1, 1, 1, 16),
    (2, 33, 31, 3, 24),
    (1, 1000, 1100, 2, 128),
    (3, 97, 289, 2, 104),
    (70000, 1, 2, 1, 16),
    (0, 3, 4, 2, 16),
    (2, 0, 4, 2, 16),
]


def objections(monkeypatch, capability, dtype=torch.float16, width=64, last_stride=1):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    x = SimpleNamespace(
        is_cuda=True, device="cuda:0", dtype=dtype, shape=(8, 32, 12, width), stride=lambda axis: last_stride
    )
    return cuda_objections(x, x, x, True, 0.125)


def test_the_kernels_are_for_gpus_older_than_sm_80(monkeypatch):
    for capability in ((7, 0), (7, 5)):
        for dtype in DTYPES:
            assert objections(monkeypatch, capability, dtype) == []
    assert "sm_80 or newer" in objections(monkeypatch, (8, 0))[0]
    with backend("cuda"):
        assert objections(monkeypatch, (9, 0)) == []


def test_what_the_kernels_do_not_take_is_named(monkeypatch):
    assert "bfloat16" in objections(monkeypatch, (7, 0), torch.bfloat16)[0]
    assert "float64" in objections(monkeypatch, (7, 0), torch.float64)[0]
    assert "136" in objections(monkeypatch, (7, 0), width=136)[0]
    assert [text[0] for text in objections(monkeypatch, (7, 0), last_stride=2)] == ["q", "k", "v"]


def draw(shape, dtype, seed=0):
    b, lq, lk, h, d = shape
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(b, n, h, d, generator=generator).to("cuda", dtype) for n in (lq, lk, lk)]


def check(q, k, v, causal, scale=0.125):
    torch.empty_like(q).fill_(math.nan)  # what the allocator hands out next is no old result
    out = attention(q, k, v, causal=causal, scale=scale)
    assert out.is_contiguous()
    check_budget(out, reference(q.double(), k.double(), v.double(), causal, scale), plain(q, k, v, causal, scale))


@on_gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_error_stays_within_twice_that_of_plain_torch(cuda, shape, dtype, causal):
    check(*draw(shape, dtype), causal)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", range(16, 129, 8))
@pytest.mark.parametrize(("lq", "lk"), [(32, 32), (32, 257), (100, 100)])
def test_every_head_width(cuda, dtype, width, lq, lk):
    check(*draw((2, lq, lk, 3, width), dtype), causal=True)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_views_of_a_fused_projection_and_unaligned_rows(cuda, dtype):
    qkv = torch.randn(4, 100, 3, 12, 64, device="cuda").to(dtype)
    check(*qkv.unbind(2), causal=True)
    check(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv.unbind(2)), causal=False)
    wide = torch.randn(4, 100, 3, 12, 67, device="cuda").to(dtype)
    check(*wide[..., 2:66].unbind(2), causal=True)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("magnitude", [0.0, 1e-3, 100.0, 3000.0])
def test_large_and_tiny_scores(cuda, dtype, magnitude):
    for shape in ((2, 32, 32, 2, 64), (2, 32, 257, 2, 64), (1, 257, 257, 2, 88)):
        q, k, v = draw(shape, dtype)
        check(q * magnitude, k, v, causal=False)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lq", "lk"), [(32, 32), (32, 257), (100, 1100)])
def test_structured_scores(cuda, dtype, lq, lk):
    for name, q, k, v, scale in structured(lq, lk, dtype):
        try:
            check(q.cuda(), k.cuda(), v.cuda(), False, scale)
        except AssertionError as error:
            raise AssertionError(name) from error


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_stay_within_three_times_those_of_plain_torch(cuda, dtype):
    tensors = draw((2, 32, 257, 3, 64), dtype)
    weight = torch.randn_like(tensors[0])

    def gradients(run, *inputs):
        inputs = [x.detach().requires_grad_() for x in inputs]
        return torch.autograd.grad((run(*inputs) * weight.to(inputs[0].dtype)).sum(), inputs)

    ours = gradients(lambda q, k, v: attention(q, k, v, scale=0.125), *tensors)
    theirs = gradients(lambda q, k, v: plain(q, k, v, False, 0.125), *tensors)
    exact = gradients(lambda q, k, v: reference(q, k, v, False, 0.125), *(x.double() for x in tensors))
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        check_budget(mine, truth, other, factor=3)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lk", [20, 100, 300])
def test_a_query_without_finite_scores_gives_nan_and_leaves_the_others_alone(cuda, dtype, lk):
    q, k, v = draw((1, 40, lk, 1, 16), dtype)
    q[0, 7] = math.nan
    assert attention(q, k, v).isnan().all(-1).flatten().nonzero().flatten().tolist() == [7]
