"""The Triton kernels: what Triton compiles for sm_80 runs on the interpreter, and is as exact as the CUDA kernels."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from seed_fast.ops.backends import attention, nearest_code, vector_quantize
from tests.ptx.machine import call
from tests.ptx.test_attention import Case as AttentionCase
from tests.ptx.test_attention import attend, random
from tests.ptx.test_nearest_code import exact, generator, integers
from tests.ptx.test_vector_quantize import make
from tests.ptx.triton_driver import sm80

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@pytest.fixture(autouse=True)
def driver(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with sm80():
        yield


def check_attention(dtype, lq, lk, d, causal, tensor_cores):
    case = AttentionCase(f"{lq} {lk} {d}", *random(dtype, 1, lq, lk, 2, d), causal=causal)
    got = call(attention.triton, case.q, case.k, case.v, causal, d**-0.5, tensor_cores=tensor_cores).double()
    truth, plain = attend(case, torch.float64), attend(case, dtype).double()
    error, budget = (got - truth).abs().max(), (plain - truth).abs().max()
    if dtype == torch.float32 and tensor_cores == "worst":
        budget = budget + 2.0**-21 * case.v.abs().max()  # powers of two and a quotient that may be off by 2^-22
    assert error <= 2 * budget, f"{case.name} {dtype}: error {error:.3g}, plain torch {budget:.3g}"


def check_ids(z, codebook, margin=False):
    ids, gap = call(nearest_code.triton, z, codebook, None, margin)
    expected, truth = exact(z, codebook)
    assert torch.equal(ids, expected), (ids, expected)
    if margin:
        torch.testing.assert_close(gap.double(), truth, rtol=2.0**-22, atol=1e-12, equal_nan=True)


def check_gradients(case):
    z, e = case.z.double(), case.codebook.double()
    commit, above = torch.tensor(0.425), torch.tensor(-1.3)
    arguments = (case.z, case.codebook, case.ids, case.grad, commit, above, True, True)
    grad_z, grad_e = call(vector_quantize.triton_backward, *arguments)
    difference = (e[case.ids] - z) * (2 / z.numel())
    for got, true in (
        (grad_z, case.grad.double() - commit.double() * difference),
        (grad_e, torch.zeros_like(e).index_add_(0, case.ids, difference * above.double())),
    ):
        ulp = torch.finfo(got.dtype).eps / 2 * (1 + 2.0**-10) + 2.0**-24
        assert ((got.double() - true).abs() <= ulp * true.abs() + 1e-7).all()


def test_attention_is_within_budget():
    for tensor_cores in ("exact", "worst"):
        check_attention(torch.float16, 33, 70, 88, False, tensor_cores)
    check_attention(torch.bfloat16, 32, 32, 64, True, "worst")


def test_ids_are_exact():
    draw = generator(0)
    check_ids(draw(20, 32), draw(100, 32))
    check_ids(integers(20, 32), integers(100, 32, seed=1))


def test_gradients_are_rounded_once():
    check_gradients(make("small", 31, 20, 16))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_of_all_sizes_is_within_budget(dtype):
    sizes = [(32, 32, 64, 1), (32, 257, 64, 0), (33, 70, 88, 1), (1, 1, 16, 0), (5, 3, 24, 0), (3, 65, 128, 1)]
    for lq, lk, d, causal in sizes:
        for tensor_cores in ("exact", "truncating", "worst"):
            check_attention(dtype, lq, lk, d, bool(causal), tensor_cores)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_ids_and_margins_of_all_sizes_are_exact(dtype):
    draw = generator(1)
    for n, k, d in ((1, 1, 1), (5, 7, 3), (70, 100, 32), (65, 129, 40), (3, 40, 256)):
        check_ids(draw(n, d).to(dtype), draw(k, d).to(dtype))
        check_ids(integers(n, d).to(dtype), integers(k, d, seed=1).to(dtype), margin=True)
    broken = draw(9, 32)
    broken[3, 4], broken[5] = float("nan"), 3e38
    check_ids(broken.to(dtype), draw(70, 32).to(dtype))
    near = 1 + integers(60, 8, low=-2, high=3) * torch.finfo(dtype).eps
    check_ids(near[:20].flip(1).to(dtype), near.to(dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantized_rows_losses_and_gradients(dtype):
    for n, k, d in ((1, 1, 1), (31, 20, 16), (70, 150, 65), (130, 20, 100)):
        case = make("", n, k, d, dtype, dtype)
        z_q, ids, commit, _ = call(vector_quantize.triton, case.z, case.codebook, None)
        assert torch.equal(z_q, case.codebook[ids])
        truth = (case.codebook.double()[ids] - case.z.double()).square().mean()
        torch.testing.assert_close(commit.double(), truth, rtol=2.0**-22, atol=0)
        check_gradients(case)
