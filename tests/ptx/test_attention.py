"""attention: the PTX of every kernel is within twice the error of plain torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from seed_fast.ops.backends import attention as backend
from tests.ops.attention_cases import structured
from tests.ptx.machine import call, check_coverage

DTYPES = (torch.float16, torch.float32)


class Case(NamedTuple):
    name: str
    q: Tensor  # [B, Lq, H, D]
    k: Tensor  # [B, Lk, H, D]
    v: Tensor
    causal: bool = False
    scale: float | None = None


def attend(case: Case, dtype: torch.dtype) -> Tensor:
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (case.q, case.k, case.v))
    scores = (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5 if case.scale is None else case.scale)
    if case.causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def check(case: Case, **options) -> None:
    scale = case.q.shape[-1] ** -0.5 if case.scale is None else case.scale
    got = call(backend.cuda, case.q, case.k, case.v, case.causal, scale, **options).double()
    truth, plain = attend(case, torch.float64), attend(case, case.q.dtype).double()
    finite = truth.isfinite()
    assert torch.equal(got.isfinite(), finite), f"{case.name}: not finite where the truth is, or the other way"
    error, budget = ((x - truth)[finite].abs().max() if finite.any() else torch.tensor(0.0) for x in (got, plain))
    rounding = truth[finite].abs().max() * torch.finfo(case.q.dtype).eps if finite.any() else torch.tensor(0.0)
    assert error <= max(2 * budget, rounding), f"{case.name}: error {error:.3g}, plain torch {budget:.3g}"
    if case.q.dtype == torch.float32 and options.get("tensor_cores") == "exact" and finite.any():
        mine, theirs = ((x - truth)[finite].square().mean().sqrt() for x in (got, plain))
        assert mine <= max(2 * theirs, rounding / 4), f"{case.name}: mean error {mine:.3g}, plain torch {theirs:.3g}"


def random(
    dtype: torch.dtype, b: int, lq: int, lk: int, h: int, d: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(b, length, h, d, generator=generator).to(dtype) for length in (lq, lk, lk))  # type: ignore[return-value]


def with_gaps(x: Tensor, gap: int, offset: int, heads_first: bool = False) -> Tensor:
    """The same values with `gap` elements of nobody behind each row and `offset` before the first."""
    b, length, h, d = x.shape
    width = d + gap
    strides = (
        (h * length * width, width, length * width, 1) if heads_first else (length * h * width, h * width, width, 1)
    )
    storage = torch.full((offset + b * length * h * width - gap,), math.nan, dtype=x.dtype)
    return storage.as_strided(x.shape, strides, offset).copy_(x)


def layers(dtype: torch.dtype) -> Iterator[Case]:
    """The shapes of SEED."""
    yield Case("causal", *random(dtype, 1, 32, 32, 2, 64), causal=True)
    yield Case("cross", *random(dtype, 1, 32, 257, 1, 64))
    yield Case("vit", *random(dtype, 1, 257, 257, 1, 88))


def named(dtype: torch.dtype) -> Iterator[Case]:
    yield from layers(dtype)
    for d in range(16, 129, 8):
        yield Case(f"head width {d}", *random(dtype, 1, 33, 40, 1, d, seed=d), causal=d % 16 == 0)
    sizes = [
        (1, 1, 1),
        (1, 5, 0),
        (33, 5, 1),
        (31, 31, 1),
        (64, 288, 0),
        (65, 288, 1),
        (33, 289, 0),
        (40, 7, 1),
        (97, 96, 1),
        (5, 256, 0),
    ]
    for d in (32, 64, 88, 128):
        for lq, lk, causal in sizes:
            heads = 32 if lq * lk < 500 else 1  # the largest of few errors says little
            tensors = random(dtype, 1, lq, lk, heads, d)
            yield Case(f"{lq} queries, {lk} keys, width {d}", *tensors, causal=bool(causal))
        q, k, v = random(dtype, 2, 33, 37, 2, d)
        for heads_first in (False, True):
            for gap, offset in ((0, 0), (8, 0), (3, 0), (0, 1)):
                gapped = [with_gaps(x, gap, offset, heads_first) for x in (q, k, v)]
                yield Case(
                    f"gap {gap}, offset {offset}, heads first {heads_first}, width {d}", *gapped, causal=gap == 8
                )
        for lq, lk, causal in ((32, 32, True), (32, 257, False), (70, 300, True)):
            q, k, v = random(dtype, 1, lq, lk, 1, d)
            yield Case(f"large scores, {lk} keys, width {d}", q * 8, k * 8, v, causal)
            yield Case(f"all equal, {lk} keys, width {d}", q * 0 + 1, k * 0 + 1, v * 0 + 1, causal)
            yield Case(f"zeros, {lk} keys, width {d}", q * 0, k, v, causal)
            yield Case(f"far values, {lk} keys, width {d}", q, k, v + 100, causal)
            yield Case(f"tiny values, {lk} keys, width {d}", q, k, v * 1e-3, causal)
            yield Case(f"negative scale, {lk} keys, width {d}", q, k, v, causal, -0.2)
            yield Case(
                f"growing scores, {lk} keys, width {d}",
                q * 0 + 1,
                (k * 0 + 1) * torch.linspace(-3, 3, lk).to(dtype)[None, :, None, None],
                v,
                causal,
            )
            broken = q.clone()
            broken[0, 3, 0, 5] = math.nan
            yield Case(f"a query that is NaN, {lk} keys, width {d}", broken, k, v, causal)


def unaligned(dtype: torch.dtype) -> Iterator[Case]:
    for d in (32, 64, 96, 128):
        for lq, lk, causal in ((1, 1, False), (33, 70, True), (40, 33, False), (70, 33, True)):
            yield Case(
                f"odd strides, {lq} {lk} {d}",
                *(with_gaps(x, 3, 1) for x in random(dtype, 1, lq, lk, 2, d)),
                causal=causal,
            )


@pytest.mark.parametrize("tensor_cores", ["exact", "worst"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_layers_of_seed_are_within_budget(dtype, tensor_cores):
    for case in layers(dtype):
        check(case, tensor_cores=tensor_cores)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_that_a_careless_softmax_spoils_are_within_budget(dtype):
    for name, q, k, v, scale in structured(32, 70, dtype):
        check(Case(name, q[:, :, :2], k[:, :, :2], v[:, :, :2], scale=scale), tensor_cores="truncating")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_named_cases_are_within_budget_and_nearly_every_instruction_runs(dtype):
    failures = []
    for tensor_cores in ("worst", "exact", "truncating") if dtype == torch.float16 else ("exact",):
        for index, case in enumerate([*named(dtype), *unaligned(dtype)]):
            if tensor_cores == "worst" or dtype == torch.float32 or index % 3 == 0:
                try:
                    check(case, seed=index, tensor_cores=tensor_cores)
                except AssertionError as failure:
                    failures.append(f"{tensor_cores}: {failure}")
    assert not failures, f"{len(failures)} cases: " + "; ".join(failures)
    check_coverage("attention_sm70" if dtype == torch.float16 else "attention", 70)
