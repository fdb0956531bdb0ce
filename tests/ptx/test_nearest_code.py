"""nearest_code: the PTX of every kernel gives the exact ids, lowest index on ties."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from seed_fast.ops.backends import nearest_code as backend
from tests.ptx.machine import call, check_coverage

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
FLOAT32_MAX = torch.finfo(torch.float32).max


class Case(NamedTuple):
    name: str
    z: Tensor  # [N, D]
    codebook: Tensor  # [K, D]
    multiprocessors: int = 80


def exact(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """ids [N] in exact arithmetic, -1 where a squared norm is not finite in float32; and margins [N] in float64."""
    z64, e64 = z.double(), codebook.double()
    norms = e64.square().sum(1)
    ids, margins = torch.full((len(z),), -1), torch.full((len(z),), math.nan, dtype=torch.float64)
    if not (norms <= FLOAT32_MAX).all():
        return ids, margins
    scores = norms - 2 * (z64 @ e64.T)
    magnitude = norms.max() + 2 * (z64.square().sum(1) * norms.max()).sqrt()
    for n in (z64.square().sum(1) <= FLOAT32_MAX).nonzero().flatten().tolist():
        close = (scores[n] <= scores[n].min() + 1e-12 * magnitude[n]).nonzero().flatten().tolist()
        first = {tuple(e64[k].tolist()): k for k in reversed(close)}  # of equal entries the lowest
        ids[n] = close[0]
        if len(first) > 1:
            row = [Fraction(x) for x in z64[n].tolist()]

            def score(entry: tuple[float, ...], row: list[Fraction] = row) -> Fraction:
                return sum((Fraction(e) * (Fraction(e) - 2 * x) for e, x in zip(entry, row, strict=True)), Fraction(0))

            ids[n] = min((score(entry), k) for entry, k in first.items())[1]
        others = torch.cat([scores[n, : ids[n]], scores[n, ids[n] + 1 :]])
        margins[n] = others.min() - scores[n, ids[n]] if len(others) else math.inf
    return ids, margins


def check(case: Case, *, margin: bool = False, **options) -> None:
    options.setdefault("multiprocessors", case.multiprocessors)
    ids, gaps = call(backend.cuda, case.z, case.codebook, None, margin, **options)
    expected, truth = exact(case.z, case.codebook)
    wrong = (ids != expected).nonzero().flatten().tolist()
    assert not wrong, f"{case.name}: rows {wrong[:5]} are {ids[wrong[:5]].tolist()}, not {expected[wrong[:5]].tolist()}"
    if margin:
        norms = case.codebook.double().square().sum(1).max()
        rounding = 1e-14 * (norms + 2 * (case.z.double().square().sum(1) * norms).sqrt()) + 1e-44
        right = (gaps.double() - truth).abs() <= 2.0**-23 * truth.abs() + rounding
        right |= (gaps.double() == truth) | (gaps.isnan() & (expected < 0))
        assert right.all(), f"{case.name}: margins {gaps[~right].tolist()}, not {truth[~right].tolist()}"


def generator(seed: int):
    source = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=source)


def integers(*shape: int, low: int = -1, high: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).float()


def with_gaps(x: Tensor, stride: int, offset: int) -> Tensor:
    """The same matrix in rows `stride` elements apart, the first one `offset` elements behind the storage's start."""
    rows, columns = x.shape
    storage = torch.full((offset + (rows - 1) * stride + columns,), math.nan, dtype=x.dtype)
    return storage.as_strided((rows, columns), (stride, 1), offset).copy_(x)


def ties() -> Iterator[Case]:
    """Groups of codes whose bounds are equal, far apart in the codebook: one of them must not get lost."""
    entries = torch.zeros(1025, 2)
    entries[0, 0], entries[1024] = 1, torch.tensor([1, 2.0**-60])
    yield Case("nearer by 2^-60", entries[1024:].clone(), entries)
    for dtype in (F32, F16, BF16):
        entries = torch.zeros(4097, 2)
        entries[:, 1], entries[1024], entries[4096] = 50, torch.tensor([1.0, 0]), torch.tensor([-1.0, 0])
        yield Case(f"two groups tie, {dtype}", torch.zeros(1, 2, dtype=dtype), entries.to(dtype))
        entries = entries.clone()
        entries[2048] = torch.tensor([1.25, 0])
        yield Case(f"a tie for the second screen, {dtype}", torch.zeros(1, 2, dtype=dtype), entries.to(dtype))
    for n, k, d in ((1, 8192, 3), (5, 4096, 8), (64, 1025, 5), (20, 2000, 2)):
        yield Case(
            f"small integers {n} {k} {d}", integers(n, d, seed=k), integers(k, d, seed=k + 1), 80 if n == 1 else 2
        )


def named() -> Iterator[Case]:
    draw = generator(0)
    shapes = [
        (1, 1, 1),
        (1, 9, 8),
        (31, 1, 32),
        (31, 200, 33),
        (77, 9, 64),
        (65, 129, 31),
        (130, 300, 100),
        (3, 70, 256),
    ]
    for index, (n, k, d) in enumerate(shapes):
        for z_type, e_type in ((F32, F32), (F16, F16), (BF16, BF16), (F32, F16))[: 4 if index % 2 else 2]:
            yield Case(f"random {n} {k} {d} {z_type} {e_type}", draw(n, d).to(z_type), draw(k, d).to(e_type), 4)
    z, e = draw(40, 32), draw(200, 32)
    yield Case("every code three times", z, torch.cat([e[:67]] * 3), 4)
    yield Case("every code three times, float16", z.half(), torch.cat([e[:67]] * 3).half(), 4)
    yield Case("all codes equal", z[:5], e[:1].repeat(300, 1), 4)
    yield Case("all codes zero", z[:5], torch.zeros(200, 32), 4)
    broken = z.clone()
    broken[3], broken[7, 5], broken[8, 5], broken[9] = math.nan, math.inf, -math.inf, 3e38
    for dtype in (F32, F16, BF16):
        yield Case(f"rows that are not finite, {dtype}", broken.to(dtype), e.to(dtype), 4)
    not_finite = e.clone()
    not_finite[17, 3] = math.nan
    yield Case("a code that is NaN", z, not_finite, 4)
    yield Case("a code beyond float32", z, torch.where(torch.arange(200)[:, None] == 150, 3e38, e), 4)
    for scale in (1e18, 1e-30, 1e-42):
        yield Case(f"times {scale}", z * scale, e * scale, 4)
    yield Case("float16 subnormals", (z * 1e-6).half(), (e * 1e-6).half(), 4)
    spread = 10.0 ** integers(40, 1, low=-18, high=18)
    yield Case("rows of all magnitudes", z * spread, e * 10.0 ** integers(200, 1, low=-18, high=18), 4)
    yield Case(
        "dimensions of all magnitudes",
        z * 10.0 ** integers(1, 32, low=-9, high=9),
        e * 10.0 ** integers(1, 32, low=-9, high=9),
        4,
    )
    yield Case("collapsed far away", z * 1e-3 + 100, draw(600, 32) * 1e-3 + 100, 4)
    for dtype, ulp in ((F32, 2.0**-23), (F16, 2.0**-10), (BF16, 2.0**-7)):
        near = 1 + integers(300, 32, low=-2, high=3) * ulp
        yield Case(f"a few bits apart, {dtype}", near[:30].flip(1).to(dtype), near.to(dtype), 4)
    yield Case("integers", integers(77, 8, seed=1), integers(1000, 8, seed=2), 4)
    yield Case("rows are codes", e[torch.arange(77) * 2], e, 4)
    half = (e[:100] * 2**10).round() / 2**10
    step = (draw(100, 32) * 2**4).round() / 2**14
    yield Case("midpoints of two codes", half[:40], torch.cat([half + step, half - step]), 4)
    twins = e.clone()
    twins[100:] = twins[:100]
    twins[100:, 0] = torch.nextafter(twins[:100, 0], torch.tensor(math.inf))
    yield Case("twins one bit apart", twins[torch.arange(40) * 5], twins, 4)
    yield Case(
        "minus zero", torch.full((5, 8), -0.0), torch.cat([torch.full((3, 8), -0.0), torch.zeros(3, 8), draw(50, 8)]), 4
    )
    for dtype, offset in ((F32, 0), (F16, 1), (BF16, 3)):
        yield Case(
            f"odd strides, {dtype}",
            with_gaps(draw(31, 33).to(dtype), 37, offset),
            with_gaps(draw(200, 33).to(dtype), 35, offset),
            4,
        )
    yield Case("one row, many times", draw(1, 32).expand(9, 32), e, 4)
    yield Case("z by columns", draw(32, 31).T, e, 4)
    yield Case("one multiprocessor", draw(200, 32), draw(300, 32), 1)
    yield Case("one entry far away", z, torch.cat([e, 1e6 * draw(1, 32)]), 4)
    yield Case("clusters far apart", z, draw(400, 32) * 1e-6 + 10 * integers(400, 1, seed=5), 4)
    yield Case(
        "the largest float16",
        torch.where(z > 0, 65504.0, -65504.0).half(),
        torch.where(e > 0, 65504.0, -65504.0).half(),
        4,
    )
    # Sums that take all the words of the exact comparison: ties between products of very different exponents.
    wide = torch.tensor([[1e18, 1e-18, 1.0, 1e-9], [1e18, 1e-18, 1.0, 2e-9], [-1e18, 1e-18, 1.0, 1e-9]])
    yield Case(
        "exponents from end to end",
        torch.tensor([[0.0, 1e-18, 3.0, 7e-20], [1e-19, 1e18, 1.0, 1e-9]]),
        wide.repeat(50, 1),
        4,
    )
    yield Case("shares of a large codebook", z[:9], draw(8192, 32), 20)


SMALL = [
    case for case in named() if case.name.startswith(("random", "integers", "rows that", "odd", "every", "midpoints"))
]


@pytest.mark.parametrize("case", list(ties()), ids=lambda case: case.name)
def test_ties_between_groups_go_to_the_lowest_index(case):
    for seed in (0, 5):
        check(case, seed=seed)


@pytest.mark.parametrize("architecture", [70, 75, 80])
@pytest.mark.parametrize("tensor_cores", ["truncating", "worst"])
def test_ids_of_a_few_cases_are_exact(architecture, tensor_cores):
    for case in SMALL[:: 5 if tensor_cores == "worst" else 7]:
        check(case, architecture=architecture, tensor_cores=tensor_cores)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [70, 75, 80])
def test_ids_and_margins_are_exact_and_nearly_every_instruction_runs(architecture):
    for seed, tensor_cores in enumerate(("worst", "exact", "truncating")):
        for index, case in enumerate(named()):
            if tensor_cores == "worst" or index % 4 == 0:
                check(case, seed=seed, tensor_cores=tensor_cores, architecture=architecture)
    for case in named():
        if len(case.z) * len(case.codebook) <= 40_000:
            check(case, margin=True, architecture=architecture)
    for case in ties():
        check(case, architecture=architecture)
    check_coverage("nearest_code", architecture)
