"""add_layer_norm: the PTX of every kernel, on the rows of the plan and on those that only the general one takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seed_fast.ops.backends import add_layer_norm as backend
from seed_fast.testing import check_budget
from tests.ptx.machine import call, check_coverage

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
EPS = 1e-6


class Case(NamedTuple):
    name: str
    x: Tensor  # [N, D]
    delta: Tensor  # [N, D]
    weight: Tensor  # [D] float32
    bias: Tensor  # [D] float32
    y_type: torch.dtype
    post_norm: bool = False
    has_stream: bool = True


def make(
    name: str, n: int, d: int, x_type: torch.dtype = F32, delta_type: torch.dtype = F32, y_type: torch.dtype = F32,
    *, post_norm: bool = False, has_stream: bool = True, gap: int = 0, offset: int = 0,
) -> Case:  # fmt: skip
    generator = torch.Generator().manual_seed(n * 7919 + d)
    x, delta = (torch.randn(n, offset + d + gap, generator=generator).to(kind) for kind in (x_type, delta_type))
    x, delta = x[:, offset : offset + d], delta[:, offset : offset + d]
    weight, bias = 1 + 0.1 * torch.randn(d, generator=generator), torch.randn(d, generator=generator)
    return Case(name, x, delta, weight, bias, y_type, post_norm, has_stream)


def run(case: Case) -> tuple[Tensor, ...]:
    """(the stream, if there is one, y): the backend, with results as the op makes them."""
    stream = torch.empty(case.x.shape, dtype=case.x.dtype) if case.has_stream else None
    y = torch.empty(case.x.shape, dtype=case.y_type)
    backend.cuda(case.x, case.delta, case.weight, case.bias, EPS, case.post_norm, stream, y)
    return (y,) if stream is None else (stream, y)


def check(case: Case, **options: int) -> None:
    *stream, y = call(lambda *tensors: run(case), case.x, case.delta, case.weight, case.bias, **options)
    total = (case.x + case.delta).to(case.x.dtype)
    norm = F.layer_norm(total.double(), case.weight.shape, case.weight.double(), case.bias.double(), EPS)
    allowed = 8 * 2.0**-24 * norm.abs().amax(1, keepdim=True)
    for got in (y, *(stream if case.post_norm else [])):
        rounding = torch.finfo(got.dtype).eps / 2 * norm.abs()
        assert ((got.double() - norm).abs() <= allowed + rounding).all(), case.name
    if not case.post_norm:
        assert all(torch.equal(got, total) for got in stream), case.name


def quick() -> Iterator[Case]:
    yield make("the ViT's row, float16", 2, 1408, delta_type=F16, y_type=F16)
    yield make("the Q-Former's row, bfloat16", 2, 768, delta_type=BF16, y_type=BF16, post_norm=True)
    yield make("unaligned", 3, 33)


def named() -> Iterator[Case]:
    yield from quick()
    for kind in (F32, F16, BF16):
        for d in (4, 96, 516, 2048, 2052, 8192):
            for post_norm in (False, True):
                yield make(f"{d} {kind} {post_norm}", 2, d, F32, kind, kind, post_norm=post_norm)
        yield make(f"no stream, {kind}", 3, 96, F32, kind, kind, post_norm=True, has_stream=False)
        for x_type in (F32, F16, BF16):
            for post_norm in (False, True):
                yield make(f"mixed {x_type} {kind}", 3, 70, x_type, kind, BF16, post_norm=post_norm, gap=3, offset=1)
        yield make(f"aligned rows with gaps, {kind}", 5, 64, F32, kind, kind, gap=8, offset=8)
    yield make("wider than registers", 1, 8196, has_stream=False)
    yield make("one element", 1, 1)


@pytest.mark.parametrize("case", list(quick()), ids=lambda case: case.name)
def test_sums_and_norms_of_a_few_cases(case):
    check(case)


def test_the_stream_may_be_the_input():
    for d in (97, 1408):
        case = make("in place", 3, d)

        def in_place(delta, weight, bias, case=case):
            x, y = case.x.clone(), torch.empty(case.x.shape)
            backend.cuda(x, delta, weight, bias, EPS, False, x, y)
            return x, y

        x, y = call(in_place, case.delta, case.weight, case.bias)
        assert torch.equal(x, case.x + case.delta)
        exact = F.layer_norm(x.double(), (d,), case.weight.double(), case.bias.double(), EPS)
        check_budget(y, exact, F.layer_norm(x, (d,), case.weight, case.bias, EPS))


def test_constant_rows_have_variance_zero_and_nan_stays_in_its_row():
    case = make("constant", 4, 1408)
    case.x[1], case.delta[1], case.x[2, 7] = 0.1, 0.0, math.nan
    _, y = call(lambda *tensors: run(case), case.x, case.delta, case.weight, case.bias)
    assert torch.equal(y[1], case.bias)
    assert y.isnan().any(1).tolist() == [False, False, True, False]


@pytest.mark.slow
def test_named_cases_and_nearly_every_instruction_runs():
    for index, case in enumerate(named()):
        check(case, seed=index)
    check_coverage("add_layer_norm", 70)
