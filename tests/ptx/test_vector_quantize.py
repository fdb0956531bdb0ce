"""vector_quantize: the PTX of the forward, the losses and both gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from seed_fast.ops.backends import vector_quantize as backend
from tests.ptx.machine import call, check_coverage
from tests.ptx.test_nearest_code import with_gaps

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


class Case(NamedTuple):
    name: str
    z: Tensor  # [N, D]
    codebook: Tensor  # [K, D]
    ids: Tensor  # [N]
    grad: Tensor  # [N, D], of z_q


def make(
    name: str,
    n: int,
    k: int,
    d: int,
    z_type: torch.dtype = F32,
    e_type: torch.dtype = F32,
    *,
    ids: Tensor | None = None,
    invalid: int = 0,
    gap: int = 0,
    grad: str = "rows",
    scale: float = 1.0,
) -> Case:
    generator = torch.Generator().manual_seed(n * 7919 + k * 31 + d)
    z, codebook = (
        (scale * torch.randn(rows, d, generator=generator)).to(kind) for rows, kind in ((n, z_type), (k, e_type))
    )
    upper = torch.randn(n, d, generator=generator).to(z_type)
    upper = {
        "rows": upper,
        "columns": upper.T.contiguous().T,
        "one": upper[:1, :1].clone().expand(n, d),
        "row": upper[:1].clone().expand(n, d),
    }[grad]
    if gap:
        z, codebook = with_gaps(z, d + gap, 1), with_gaps(codebook, d + gap, 1)
    chosen = torch.randint(0, k, (n,), generator=generator) if ids is None else ids
    chosen[:invalid] = -1
    return Case(name, z, codebook, chosen, upper)


def check(case: Case, **options) -> None:
    z, e, n = case.z.double(), case.codebook.double(), case.z.numel()
    commit, above = torch.tensor(0.425), torch.tensor(-1.3)
    grad_z, grad_e = call(
        backend.cuda_backward, case.z, case.codebook, case.ids, case.grad, commit, above, True, True, **options
    )
    valid = (case.ids >= 0)[:, None]
    chosen = torch.where(valid, e[case.ids.clamp(min=0)], math.nan)
    difference = (chosen - z) * (2 / n)
    true_z = case.grad.double() - commit.double() * difference
    # One rounding to float32, one to the dtype.
    assert torch.equal(grad_z.isnan(), true_z.isnan()), case.name
    ulp = torch.finfo(case.z.dtype).eps / 2 * (1 + 2.0**-10) + 2.0**-24
    assert ((grad_z.double() - true_z).abs() <= ulp * true_z.abs() + 1e-7).logical_or(true_z.isnan()).all(), case.name
    true_e = torch.zeros_like(e).index_add_(
        0, case.ids.clamp(min=0), torch.where(valid, difference * above.double(), 0)
    )
    ulp = torch.finfo(case.codebook.dtype).eps / 2 * (1 + 2.0**-10) + 2.0**-24
    assert ((grad_e.double() - true_e).abs() <= ulp * true_e.abs() + 1e-7).all(), case.name


def check_forward(case: Case, **options) -> None:
    """Through nearest_code: rows that are codes of their own ids."""
    z_q, ids, commit, codebook_loss = call(backend.cuda, case.z, case.codebook, None, multiprocessors=2, **options)
    chosen = torch.where((ids >= 0)[:, None], case.codebook.double()[ids.clamp(min=0)], math.nan)
    assert torch.equal(z_q.nan_to_num(1e30), chosen.to(z_q.dtype).nan_to_num(1e30)), case.name
    loss = (chosen - case.z.double()).square().mean().float()
    torch.testing.assert_close(commit, codebook_loss, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(commit, loss, rtol=2.0**-23, atol=0, equal_nan=True)


def quick() -> Iterator[Case]:
    yield make("small", 31, 200, 33)
    yield make("float16, strides", 45, 130, 33, F16, F16, gap=4, grad="columns")
    yield make("no entry for some", 45, 130, 33, BF16, F32, invalid=5)


def named() -> Iterator[Case]:
    yield from quick()
    for n, k, d in (
        (1, 1, 1),
        (1, 9, 8),
        (31, 1, 32),
        (77, 200, 1),
        (65, 129, 31),
        (64, 128, 32),
        (130, 200, 100),
        (1, 100, 256),
        (257, 300, 16),
        (500, 9, 3),
    ):
        for z_type, e_type in ((F32, F32), (F16, F16), (BF16, BF16), (F32, F16), (F16, BF16), (BF16, F32)):
            yield make(f"{n} {k} {d} {z_type} {e_type}", n, k, d, z_type, e_type)
    for kind in (F32, F16, BF16):
        for grad in ("rows", "columns", "one", "row"):
            yield make(f"gradient by {grad}, {kind}", 45, 130, 33, kind, kind, gap=8, grad=grad)
        yield make(f"all rows on one entry, {kind}", 300, 300, 32, kind, kind, ids=torch.full((300,), 299))
        yield make(f"no row has an entry, {kind}", 9, 70, 5, kind, kind, invalid=9)
        yield make(f"large, {kind}", 50, 70, 32, kind, kind, scale=100.0)
        for d in (5, 63, 64, 65, 97, 128):
            yield make(f"width {d}, {kind}", 70, 150, d, kind, F32, invalid=2)
    yield make("many elements for a thread", 5000, 130, 110)


@pytest.mark.parametrize("case", list(quick()), ids=lambda case: case.name)
def test_gradients_and_losses_of_a_few_cases(case):
    check(case)
    check_forward(case)


@pytest.mark.slow
def test_named_cases_and_nearly_every_instruction_runs():
    for index, case in enumerate(named()):
        check(case, seed=index)
        if len(case.z) < 1000:
            check_forward(case, seed=index)
    broken = make("a row that is NaN", 40, 60, 16)
    broken.z[3, 5] = math.nan
    check_forward(broken)
    check_coverage("vector_quantize", 70)
