"""Inputs on which a careless softmax loses bits; and plain torch beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

Case = tuple[str, Tensor, Tensor, Tensor, float]  # name, q, k, v, scale
WIDTH, HEADS = 64, 6


def plain(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, scale: float | None = None) -> Tensor:
    """Plain torch in the inputs' dtype: what an eager model computes."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1), -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def structured(lq: int, lk: int, dtype: torch.dtype) -> Iterator[Case]:
    """Large scores, shared offsets, slopes, one-hot and even weights, values of one sign; [1, L, HEADS, WIDTH]."""
    generator = torch.Generator().manual_seed(lq + lk)
    draw = lambda length: torch.randn(1, length, HEADS, WIDTH, generator=generator)  # noqa: E731

    def case(name: str, scale: float, q: Tensor, k: Tensor, v: Tensor | None = None) -> Case:
        return (name, q.to(dtype), k.to(dtype), (draw(lk) if v is None else v).to(dtype), scale)

    def first_column(length: int, values: Tensor | float) -> Tensor:
        x = torch.zeros(1, length, HEADS, WIDTH)
        x[..., 0] = values
        return x

    position = torch.arange(lk)[:, None] + torch.linspace(0, 1, HEADS)
    near = 1024 + torch.randint(-32, 32, (lk, HEADS), generator=generator) / 8  # times 32: exact in float32
    yield case("scores of 1024, up to 8 apart", 1 / 32, first_column(lq, 32.0), first_column(lk, near))
    yield case("scores of -1024, up to 8 apart", 1 / 32, first_column(lq, -32.0), first_column(lk, near))
    yield case("a negative scale", -1 / 32, first_column(lq, 32.0), first_column(lk, near))
    for slope in (8.0, -8.0, 64.0):
        yield case(f"a slope of {slope}", 1.0, first_column(lq, 1.0), first_column(lk, slope * position / lk))
    for offset in (30.0, -30.0):
        q, k = draw(lq), draw(lk)
        q[..., 0], k[..., 0] = 30.0, offset
        yield case(f"an offset of {30 * offset}", 0.125, q, k)
    for peak in (0.0, 20.0, 300.0):
        hot = torch.zeros(lk, HEADS)
        hot[lk // 2] = peak
        yield case(f"one key ahead by {peak}", 1.0, first_column(lq, 1.0), first_column(lk, hot))
    yield case("values of one sign", 0.125, draw(lq), draw(lk), draw(lk).abs())
    yield case("values far from 0", 0.125, draw(lq), draw(lk), draw(lk) + 100)
    yield case("scale 0", 0.0, draw(lq), draw(lk))
