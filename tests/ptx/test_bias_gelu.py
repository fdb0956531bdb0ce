"""bias_gelu: the PTX of every kernel, on the layers of the plan and on what only the general one takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from seed_fast.ops.backends import bias_gelu as backend
from tests.ptx.machine import call, check_coverage

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


class Case(NamedTuple):
    name: str
    x: Tensor  # [N, D]
    bias: Tensor  # [D]


def make(
    name: str, n: int, d: int, x_type: torch.dtype = F32, bias_type: torch.dtype | None = None, *, gap: int = 0,
    offset: int = 0, scale: float = 2.0,
) -> Case:  # fmt: skip
    generator = torch.Generator().manual_seed(n * 7919 + d)
    x = (scale * torch.randn(n, offset + d + gap, generator=generator)).to(x_type)
    return Case(name, x[:, offset : offset + d], torch.randn(d, generator=generator).to(bias_type or x_type))


def run(x: Tensor, bias: Tensor) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype)
    backend.cuda(x, bias, y)
    return y


def check(case: Case, **options: int) -> None:
    y = call(run, case.x, case.bias, **options)
    total = (case.x.float() + case.bias.float()).double()
    true = 0.5 * total * torch.special.erfc(total * -(0.5**0.5))
    # exp2's approximation, and in the tail as many roundings more as the exponent is large.
    allowed = ((24 + total**2) * 2.0**-24 + torch.finfo(y.dtype).eps / 2) * true.abs()
    smallest = 2.0**-25 if y.dtype == F16 else 2.0**-120
    assert ((y.double() - true).abs() <= allowed + smallest).all(), case.name


def quick() -> Iterator[Case]:
    yield make("float16", 5, 256, F16)
    yield make("bfloat16", 3, 128, BF16)
    yield make("unaligned", 3, 33)


def named() -> Iterator[Case]:
    yield from quick()
    for kind in (F32, F16, BF16):
        for n, d in ((1, 8), (1, 1), (2701, 8), (9, 1032), (33, 264)):
            yield make(f"{n} {d} {kind}", n, d, kind)
        yield make(f"several rows a block, unaligned, {kind}", 2701, 3, kind)
        for bias_type in (F32, F16, BF16):
            yield make(f"mixed {kind} {bias_type}", 5, 40, kind, bias_type, gap=3, offset=1)
        yield make(f"aligned rows with gaps, {kind}", 5, 64, kind, gap=8, offset=8)
        yield make(f"large, {kind}", 5, 64, kind, scale=100.0)
        yield make(f"tiny, {kind}", 5, 64, kind, scale=1e-3)


@pytest.mark.parametrize("case", list(quick()), ids=lambda case: case.name)
def test_values_of_a_few_cases(case):
    check(case)


def test_the_output_may_be_the_input():
    for case in (make("in place", 5, 64, F16), make("in place", 5, 33)):

        def in_place(bias, case=case):
            x = case.x.clone()
            backend.cuda(x, bias, x)
            return x

        assert torch.equal(call(in_place, case.bias), call(run, case.x, case.bias))


def test_nan_and_infinity_change_no_other_element():
    case = make("nan", 2, 64)
    case.x[0, 3], case.x[0, 20], case.x[1, 30] = math.nan, math.inf, -math.inf
    y = call(run, case.x, case.bias)
    assert (y[0, 3].isnan().item(), y[0, 20].item(), y[1, 30].item()) == (True, math.inf, 0.0)
    assert y.isfinite().logical_not().sum() == 2


@pytest.mark.slow
def test_named_cases_and_nearly_every_instruction_runs():
    for index, case in enumerate(named()):
        check(case, seed=index)
    check_coverage("bias_gelu", 70)
