"""The xformers backend: when it is refused and why, what it hands over, and, where it is installed, what comes back."""

from __future__ import annotations

import importlib.util
import math
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest
import torch

from seed_fast.ops import BackendError, _native, attention, backend, backend_table, explain
from seed_fast.ops.backends import attention as backends
from seed_fast.testing import check_budget
from tests.ops.attention_cases import plain

q, k, v = torch.randn(2, 5, 3, 16), torch.randn(2, 7, 3, 16), torch.randn(2, 7, 3, 16)


class LowerTriangularMask:
    """Stand-in for xFormers' mask: query i sees keys 0 .. i."""


@pytest.fixture
def calls(monkeypatch):
    """A stand-in for the package, which records its arguments and computes the definition; without a CUDA device."""
    recorded = []

    def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None):
        recorded.append({"attn_bias": attn_bias, "p": p, "scale": scale})
        return plain(query, key, value, isinstance(attn_bias, LowerTriangularMask), scale)

    package, ops = ModuleType("xformers"), ModuleType("xformers.ops")
    package.ops = ops
    ops.memory_efficient_attention, ops.LowerTriangularMask = memory_efficient_attention, LowerTriangularMask
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return recorded


def fake_tensor(dtype=torch.float16, shape=(8, 32, 12, 64), strides=None, address=1024):
    strides = strides or torch.empty(shape, device="meta").stride()
    return SimpleNamespace(
        is_cuda=True, device="cuda:0", dtype=dtype, shape=shape, stride=lambda axis: strides[axis],
        data_ptr=lambda: address, element_size=lambda: dtype.itemsize,
    )  # fmt: skip


def objections(monkeypatch, capability=(8, 0), **description):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    x = fake_tensor(**description)
    with backend("xformers"):
        return backends.xformers_objections(x, x, x, True, 0.125)


@pytest.mark.parametrize("causal", [False, True])
def test_it_gets_the_mask_and_the_scale_and_gives_the_definition(calls, causal):
    out = backends.xformers(q, k, v, causal, 0.3)
    assert torch.equal(out, plain(q, k, v, causal, 0.3))
    assert out.is_contiguous()
    assert [(isinstance(call["attn_bias"], LowerTriangularMask), call["p"], call["scale"]) for call in calls] == [
        (causal, 0.0, 0.3)
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_its_kernels_take_is_accepted(monkeypatch, dtype):
    assert objections(monkeypatch, dtype=dtype) == []
    assert objections(monkeypatch, dtype=dtype, strides=(32 * 36 * 64, 36 * 64, 64, 1)) == []


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"capability": (6, 1)}, "older than sm_70"),
        ({"capability": (7, 0), "dtype": torch.bfloat16}, "bfloat16, and the GPU is older than sm_80"),
        ({"dtype": torch.float64}, "q is float64"),
        ({"shape": (8, 32, 12, 136)}, "head width 136"),
        ({"shape": (8, 32, 12, 20)}, "head width 20"),
        ({"shape": (0, 32, 12, 64)}, "empty"),
        ({"strides": (32 * 12 * 128, 12 * 128, 128, 2)}, "q's last axis is not contiguous"),
        ({"strides": (32 * 12 * 67, 12 * 67, 67, 1)}, "q's rows are not aligned to 16 bytes"),
        ({"address": 1026}, "q's rows are not aligned to 16 bytes"),
    ],
)
def test_what_they_do_not_take_is_named(monkeypatch, description, message):
    assert message in objections(monkeypatch, **description)[0]


def test_a_v100_takes_half_and_single_precision(monkeypatch):
    assert objections(monkeypatch, capability=(7, 0)) == objections(monkeypatch, (7, 0), dtype=torch.float32) == []


def test_it_is_never_chosen_before_what_is_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    x = fake_tensor()
    assert backends.xformers_objections(x, x, x, True, 0.125) == ["it runs on request alone"]
    names = [row["backend"] for row in backend_table() if row["op"] == "attention"]
    assert names[-2:] == ["xformers", "reference"]


def test_a_cpu_tensor_is_refused_with_the_reason():
    assert "xformers: q is on cpu, and xFormers' kernels are for CUDA" in explain("attention", q, k, v, False, 0.25)
    with backend("xformers"), pytest.raises(BackendError, match="'xformers' was asked for but cannot run: q is on cpu"):
        attention(q, k, v)


def test_a_missing_package_is_named_with_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    monkeypatch.setitem(sys.modules, "xformers", None)
    assert "pip install 'seed-fast[xformers]'" in _native.xformers_unavailable()
    assert "0.0.30" in _native.xformers_unavailable()


def test_an_installed_package_needs_a_gpu(calls):
    assert _native.xformers_unavailable() == ("" if torch.cuda.is_available() else "this torch sees no CUDA device")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.skipif(importlib.util.find_spec("xformers") is None, reason="xformers is not installed")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(2, 32, 32, 12, 64), (2, 32, 257, 12, 64), (1, 257, 257, 16, 88)])
def test_error_on_a_gpu_is_within_twice_that_of_plain_torch(shape, dtype, causal):
    b, lq, lk, h, d = shape
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(b, n, h, d, generator=generator).to("cuda", dtype) for n in (lq, lk, lk)]
    with backend("xformers"):
        got = attention(*tensors, causal=causal)
    assert not math.isnan(got.float().sum().item())
    check_budget(got, plain(*(x.double() for x in tensors), causal), plain(*tensors, causal))
