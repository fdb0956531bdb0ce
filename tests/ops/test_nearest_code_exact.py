"""Ids in exact arithmetic, on every backend that runs here: ties, near ties, cancellation, any magnitudes."""

from __future__ import annotations

import os
import time
from fractions import Fraction

import numpy as np
import pytest
import torch

from seed_fast.ops import _native, backend, nearest_code, pack_codebook, vector_quantize
from seed_fast.ops.nearest_code import reference
from tests.ops.contract import backends_of_a_cpu, run_triton
from tests.ops.exact_ids import Problem, draw_problem, exact_answer, objections

ISAS = () if _native.cpu_unavailable() else ("scalar", "avx2", "avx512", "avx512bf16")
everywhere = backends_of_a_cpu("reference", isas=ISAS)


def check_all(rng: np.random.Generator, monkeypatch, *, work: int) -> None:
    """One problem on the reference, and on the C++ kernel of each instruction set in one of its forms."""
    problem = draw_problem(rng, work=work)
    answer = exact_answer(problem.z, problem.codebook)
    assert not objections(problem, *reference(problem.z, problem.codebook), answer)
    with backend("cpu"):
        for isa in ISAS:
            monkeypatch.setenv("SEED_FAST_CPU_ISA", isa)
            codebook = pack_codebook(problem.codebook) if rng.random() < 0.5 else problem.codebook
            form = int(rng.integers(0, 3))
            if form == 0:
                ids, margin = nearest_code(problem.z, codebook), None
            elif form == 1:
                ids, margin = nearest_code(problem.z, codebook, return_margin=True)
            else:
                ids, margin = vector_quantize(problem.z, codebook)[1], None
            complaint = objections(problem, ids, margin, answer)
            assert not complaint, f"{isa}: {complaint}"


@pytest.mark.parametrize("seed", range(4))
def test_every_backend_has_the_exact_answer(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    for _ in range(25):
        check_all(rng, monkeypatch, work=30_000)


@pytest.mark.slow
def test_every_backend_has_the_exact_answer_for_minutes(monkeypatch):
    rng = np.random.default_rng()
    seed = int(rng.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    seconds, done = float(os.environ.get("FUZZ_SECONDS", "120")), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = rng.bit_generator.state
        try:
            check_all(rng, monkeypatch, work=200_000)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, problem {done}, state {state}: {error}") from error
        done += 1
    print(f"{done} problems")
    assert done > 10


def one(values):
    return torch.tensor([values], dtype=torch.float32)


def test_a_difference_below_what_cancels_is_no_tie(everywhere):
    h = 2.0**-30
    codebook = torch.tensor([[h, -1.0, -h, h, 1.0], [0.0, -1.0, -h, -h, 1.0]])
    z = one([0.0, -0.5, -0.5, 0.0, 1.0])
    ids, margin = nearest_code(z, codebook, return_margin=True)
    assert ids.item() == 1
    assert Fraction(margin.item()) == Fraction(1, 2**60)


@pytest.mark.parametrize("exponent", [-60, -74, -100, -149])
def test_the_smallest_differences_of_float32_are_seen(everywhere, exponent):
    tiny = 2.0**exponent
    codebook = torch.zeros(1025, 2)
    codebook[0, 0] = 1
    codebook[1024] = torch.tensor([1, tiny])
    assert nearest_code(codebook[1024:], codebook).item() == 1024
    assert nearest_code(one([1, tiny / 2 if exponent > -149 else 0]), codebook).item() == 0  # halfway, or the first


def test_margins_of_ties_are_zero_and_of_near_ties_are_not(everywhere):
    # Permutations of one entry, seen from the diagonal: float64 rounds their equal scores apart.
    generator = torch.Generator().manual_seed(5)
    entry = torch.randn(33, generator=generator)
    z = torch.full((1, 33), 0.3)
    permuted = torch.stack([entry[torch.randperm(33, generator=generator)] for _ in range(40)])
    assert nearest_code(z, permuted, return_margin=True)[1].item() == 0
    other = permuted[:2].clone()
    other[1, 0] += other[1, 0].abs() * 2**-23
    _, margin = nearest_code(z, other, return_margin=True)
    assert not objections(Problem(z, other, "one bit apart"), nearest_code(z, other), margin)
    assert margin.item() > 0


def test_float64_input_is_decided_exactly():
    tiny = 2.0**-500
    codebook = torch.tensor([[1.0, 0.0], [1.0, tiny], [1.0, 3 * tiny]], dtype=torch.float64)
    z = torch.tensor([[1.0, tiny], [1.0, 0.0], [1.0, tiny / 2], [1.0, 2 * tiny]], dtype=torch.float64)
    ids, margin = nearest_code(z, codebook, return_margin=True)
    assert ids.tolist() == [1, 0, 0, 1]
    assert margin.tolist() == [0] * 4  # below float32, or ties


def test_flushing_subnormals_changes_no_id(everywhere):
    generator = torch.Generator().manual_seed(1)
    z, codebook = (torch.randint(-3, 4, (rows, 3), generator=generator) * 2.0**-149 for rows in (20, 60))
    expected, _ = exact_answer(z, codebook)
    torch.set_flush_denormal(True)
    try:
        got = nearest_code(z, codebook).tolist()
    finally:
        torch.set_flush_denormal(False)
    assert got == expected


@pytest.mark.parametrize("below", [True, False])
def test_the_largest_finite_norm_is_the_limit(everywhere, below):
    # Squares of 2^126: four of them are 2^128, just beyond float32.
    z = torch.tensor([[2.0**63, 2.0**63, 2.0**63, 2.0**62 if below else 2.0**63]], dtype=torch.float32)
    codebook = torch.tensor([[0.0, 0, 0, 0], [1.0, 0, 0, 0]])
    if below:
        assert nearest_code(z, codebook).item() == 1
    else:
        with pytest.raises(ValueError, match="row of z 0 is not"):
            nearest_code(z, codebook)


def test_triton_tells_subnormal_bfloat16_values_apart():
    script = """
levels = torch.arange(-127, 128).to(torch.int16)
codebook = (levels.abs() + (levels < 0) * -32768).to(torch.int16).view(torch.bfloat16)[:, None].to(device)
with backend("triton"):
    ids = nearest_code(codebook[::9].clone(), codebook)
assert ids.tolist() == list(range(0, 255, 9)), ids
"""
    run_triton(script)


@pytest.mark.parametrize("seed", [pytest.param(0), pytest.param(None, marks=pytest.mark.slow)])
def test_triton_has_the_exact_answer(seed):
    script = f"""
import numpy as np, time
from tests.ops.exact_ids import draw_problem, exact_answer, objections
seed = {seed} if {seed} is not None else int(np.random.default_rng().integers(0, 2**32))
rng, end, done = np.random.default_rng(seed), time.monotonic() + {120 if seed is None else 10}, 0
while time.monotonic() < end and done < {10**9 if seed is None else 24}:
    problem = draw_problem(rng, work={60_000 if seed is None else 6_000}, largest_k={1025 if seed is None else 200})
    problem = problem._replace(z=problem.z[:2])  # the interpreter takes a second for a row that needs every step
    answer = exact_answer(problem.z, problem.codebook)
    want_margin = bool(rng.random() < 0.5)
    with backend("triton"):
        got = nearest_code(problem.z.to(device), problem.codebook.to(device), return_margin=want_margin)
    ids, margin = (got[0].cpu(), got[1].cpu()) if want_margin else (got.cpu(), None)
    complaint = objections(problem, ids, margin, answer)
    assert not complaint, (seed, done, complaint)
    done += 1
print(done, "problems")
assert done > 5
"""
    print(run_triton(script))
