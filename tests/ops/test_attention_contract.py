"""The registered op: gradients, opcheck, torch.compile, dispatch, validation."""

from __future__ import annotations

import math

import pytest
import torch

from seed_fast.ops import BackendError, attention, backend, backend_table, explain
from seed_fast.ops.attention import reference
from seed_fast.testing import check_budget
from tests.ops.attention_cases import plain

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
q, k, v = torch.randn(2, 5, 3, 16), torch.randn(2, 7, 3, 16), torch.randn(2, 7, 3, 16)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((q[0], k, v), {}, ValueError, r"q must be \[B, L, H, Dh\], got \[5, 3, 16\]"),
        (
            (q, k[:1], v[:1]),
            {},
            ValueError,
            r"k must be \[2, Lk, 3, 16\] to match q \[2, 5, 3, 16\], got \[1, 7,",
        ),
        ((q, k[:, :, :2], v), {}, ValueError, r"k must be .*got \[2, 7, 2, 16\]"),
        ((q, k[..., :8], v), {}, ValueError, r"k must be .*got \[2, 7, 3, 8\]"),
        ((q, k, v[:, 1:]), {}, ValueError, r"v must be \[2, 7, 3, 16\] like k, got \[2, 6, 3, 16\]"),
        ((q, k[:, :0], v[:, :0]), {}, ValueError, r"k must have at least one key .*got \[2, 0, 3, 16\]"),
        ((q, k.half(), v), {}, TypeError, "k must be torch.float32 like q, got torch.float16"),
        ((q.long(), k, v), {}, TypeError, "q must be float32, float16, bfloat16 or float64, got torch.int64"),
        ((q.numpy(), k, v), {}, TypeError, "q must be a Tensor, got ndarray"),
        ((q, k, v.to("meta")), {}, ValueError, "v must be on cpu like q, got meta"),
        ((q, k, v), {"causal": torch.ones(5, 7)}, TypeError, "causal must be True or False, got Tensor"),
        ((q, k, v), {"scale": math.nan}, ValueError, "scale must be a finite number, got nan"),
        ((q, k, v), {"scale": "1"}, ValueError, "scale must be a finite number, got '1'"),
    ],
)
def test_wrong_input_is_named(arguments, options, error, message):
    with pytest.raises(error, match="attention: " + message):
        attention(*arguments, **options)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype, causal):
    tensors = [x.to(dtype, copy=True) for x in (q, k, v)]
    torch.library.opcheck(torch.ops.seed_fast.attention_backward.default, (tensors[0], *tensors, causal, 0.25))
    torch.library.opcheck(torch.ops.seed_fast.attention.default, (*tensors, causal, 0.25))
    torch.library.opcheck(torch.ops.seed_fast.attention.default, (*(x.requires_grad_() for x in tensors), causal, 0.25))


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


@pytest.mark.parametrize("train", [False, True])
def test_compiles_to_one_graph_without_recompiling_on_equal_shapes(train):
    def layer(qkv):
        return attention(*(qkv * 2).unbind(2), causal=True)

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(2):
            qkv = torch.randn(2, 8, 3, 2, 16, generator=torch.Generator().manual_seed(seed), requires_grad=train)
            assert torch.equal(compiled(qkv), layer(qkv))
            if train:
                double = qkv.detach().double().requires_grad_()
                runs = ((compiled, qkv), (layer, double), (layer, qkv))
                grads = [torch.autograd.grad(f(x).square().sum(), x)[0] for f, x in runs]
                check_budget(*grads, factor=3)


@pytest.mark.parametrize("d", [1, 8, 12, 136])
def test_other_head_widths_run_on_sdpa_and_forced_kernels_say_why_not(d):
    x = torch.randn(2, 5, 3, d)
    exact = reference(*[x.double()] * 3, False, d**-0.5)
    check_budget(attention(x, x, x), exact, plain(x, x, x, False))
    with backend("cpu"), pytest.raises(BackendError, match=f"head width {d} is not a multiple of 8|not there"):
        attention(x, x, x)


def test_float64_goes_to_the_reference():
    assert "reference: runs" in explain("attention", q.double(), k.double(), v.double(), False, 1.0)
    exact = attention(q.double(), k.double(), v.double())
    check_budget(attention(q, k, v), exact, plain(q, k, v, False))


def test_output_is_contiguous_on_every_backend():
    for name in ("sdpa", "reference"):
        with backend(name):
            assert attention(q, k, v).is_contiguous()
    assert attention(q, k, v).is_contiguous()


def test_the_table_names_every_backend_and_a_reason_where_one_is_missing():
    rows = [row for row in backend_table() if row["op"] == "attention"]
    assert [row["backend"] for row in rows if row["backend"] in ("sdpa", "reference")] == ["sdpa", "reference"]
    assert {"cpu", "triton"} <= {row["backend"] for row in rows}
    assert all(row["available"] != bool(row["reason"]) for row in rows)
