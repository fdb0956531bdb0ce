"""What nearest_code must answer, from Python's integers, and inputs on which rounding gives another answer.

Nothing here comes from the implementation: values become integers by `float.as_integer_ratio`, and no score is rounded.
"""

from __future__ import annotations

import heapq
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NORM_LIMIT = 2.0**63  # keeps squared norms finite in float32


def _integers(*tensors: Tensor) -> tuple[list[np.ndarray], int]:
    """Every tensor as integers in units of 1 / scale: int64 where all scores fit into it, else Python's."""
    levels, at = np.unique(np.concatenate([x.double().numpy().ravel() for x in tensors]), return_inverse=True)
    ratios = [value.as_integer_ratio() for value in levels.tolist()]
    scale = max(denominator for _, denominator in ratios)  # all are powers of two
    whole = [numerator * (scale // denominator) for numerator, denominator in ratios]
    largest = max(map(abs, whole))
    fits = 3 * largest**2 * tensors[0].shape[1] < 2**62
    values = np.array(whole, dtype=np.int64 if fits else object)[at.ravel()]
    sizes = np.cumsum([x.numel() for x in tensors])[:-1]
    return [part.reshape(x.shape) for part, x in zip(np.split(values, sizes), tensors, strict=True)], scale


def exact_answer(z: Tensor, codebook: Tensor) -> tuple[list[int], list[Fraction | None]]:
    """z [N, D], codebook [K, D], all finite -> ids, and gaps to the second best (None where K = 1)."""
    (rows, entries), scale = _integers(z, codebook)
    norms = (entries * entries).sum(axis=1)
    ids, gaps = [], []
    for row in rows:
        scores = (norms - 2 * (entries * row).sum(axis=1)).tolist()
        ids.append(scores.index(min(scores)))
        two = heapq.nsmallest(2, scores)
        gaps.append(Fraction(two[1] - two[0], scale**2) if len(two) > 1 else None)
    return ids, gaps


def margin_is_right(margin: float, gap: Fraction | None) -> bool:
    """Whether a margin is the gap, to the last bit or two of float32."""
    if gap is None or gap > Fraction(2) ** 127:
        return margin > 1.7e38
    return abs(Fraction(margin) - gap) <= gap / 2**22 + Fraction(1, 2**149) and (gap != 0 or margin == 0)


class Problem(NamedTuple):
    """One search, and how it was made."""

    z: Tensor  # [N, D], with any strides
    codebook: Tensor  # [K, D]
    kind: str


def _tied_levels(rng: np.random.Generator, n: int, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    levels = int(rng.choice([1, 2, 4]))
    scale = 2.0 ** int(rng.integers(-6, 7))
    return rng.integers(-levels, levels + 1, (n, d)) * scale, rng.integers(-levels, levels + 1, (k, d)) * scale


def _repeated_entries(rng: np.random.Generator, n: int, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    few = rng.standard_normal((max(1, k // int(rng.integers(2, 40))), d))
    return rng.standard_normal((n, d)), few[rng.integers(0, len(few), k)]


def _one_entry_permuted(rng: np.random.Generator, n: int, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    # Equal scores from a constant row, which float64 rounds apart.
    entry = rng.standard_normal(d)
    return np.repeat(rng.standard_normal((n, 1)), d, axis=1), np.stack([rng.permutation(entry) for _ in range(k)])


def _midpoints(rng: np.random.Generator, n: int, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    e = np.round(rng.standard_normal((k, d)) * 64) / 64
    return (e[rng.integers(0, k, n)] + e[rng.integers(0, k, n)]) / 2, e


def _one_step_apart(rng: np.random.Generator, n: int, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    entry = np.float32(rng.standard_normal(d))
    steps = rng.integers(-1, 2, (k, d)).astype(np.float32)
    return rng.standard_normal((n, d)), entry + steps * np.spacing(np.abs(entry))


def _cancelled(rng: np.random.Generator, n: int, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    # Large parts that cancel, and a difference far below them: of 2^-30 to 2^-149.
    tiny = 2.0 ** -rng.integers(30, 150, (k, 1))
    e = np.where(rng.random((k, d)) < 0.5, rng.integers(-1, 2, (k, d)), rng.integers(-1, 2, (k, d)) * tiny)
    z = e[rng.integers(0, k, n)] * np.where(rng.random((n, d)) < 0.5, 1, 0.5)
    return z, e


def _far_apart(rng: np.random.Generator, n: int, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    # Magnitudes from subnormals to the edge of overflow beside each other.
    draw = lambda rows: rng.integers(-2, 3, (rows, d)) * 2.0 ** rng.integers(-149, 61, (rows, d))  # noqa: E731
    e = draw(k)
    few = e[rng.integers(0, max(1, k // 3), k)]
    return np.where(rng.random((n, 1)) < 0.5, draw(n), e[rng.integers(0, k, n)]), np.where(
        rng.random((k, d)) < 0.7, few, e
    )


def _random(rng: np.random.Generator, n: int, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    scale = 2.0 ** int(rng.integers(-60, 50))
    return rng.standard_normal((n, d)) * scale, rng.standard_normal((k, d)) * scale


KINDS = {
    function.__name__.strip("_"): function
    for function in (
        _tied_levels, _repeated_entries, _one_entry_permuted, _midpoints, _one_step_apart, _cancelled, _far_apart,
        _random,
    )
}  # fmt: skip
QUICKLY_CHECKED = ("tied_levels", "midpoints")  # small integers: exact scores are cheap


def _cast(rng: np.random.Generator, x: np.ndarray) -> Tensor:
    dtype = DTYPES[int(rng.integers(0, 3))]
    limit = min(NORM_LIMIT / x.shape[1] ** 0.5, torch.finfo(dtype).max)
    return torch.from_numpy(np.clip(x, -limit, limit)).to(dtype)


def _with_strides(rng: np.random.Generator, x: Tensor) -> Tensor:
    how = int(rng.integers(0, 4))
    n, d = x.shape
    if how == 1:
        return x.T.contiguous().T
    if how == 2:
        wide = x.new_full((n, 2 * d + 3), 9.0)
        wide[:, 2 : 2 + 2 * d : 2] = x
        return wide[:, 2 : 2 + 2 * d : 2]
    if how == 3:
        tall = x.new_full((3 * n, d), 9.0)
        tall[1::3] = x
        return tall[1::3]
    return x


def draw_problem(rng: np.random.Generator, *, work: int, largest_k: int = 8192) -> Problem:
    """A problem of N 1 to 64, K 1 to `largest_k`, D 1 to 64: at most about `work` products in Python's integers."""
    kind = str(rng.choice(list(KINDS)))
    budget = work * (20 if kind in QUICKLY_CHECKED else 1)
    d = int(rng.choice([1, 2, 3, 5, 7, 8, 16, 31, 32, 33, 64]))
    sizes = [1, 2, 3, 8, 9, 127, 128, 129, 200, 513, 1024, 1025, 2049, 4097, 8192]
    k = int(rng.choice([size for size in sizes if size <= largest_k and size * d <= budget]))
    n = min(int(rng.choice([1, 2, 3, 31, 32, 33, 64])), max(1, budget // (k * d)))
    z, codebook = KINDS[kind](rng, n, k, d)
    return Problem(_with_strides(rng, _cast(rng, z)), _with_strides(rng, _cast(rng, codebook)), kind)


def objections(problem: Problem, ids: Tensor, margin: Tensor | None, answer: tuple[list, list] | None = None) -> str:
    """What is wrong with ids [N] and margin [N], or ""."""
    expected, gaps = answer or exact_answer(problem.z, problem.codebook)
    got = ids.tolist()
    wrong = [row for row, (one, other) in enumerate(zip(got, expected, strict=True)) if one != other]
    told = f"{problem.kind} z {list(problem.z.shape)} {problem.z.dtype} codebook {list(problem.codebook.shape)} "
    told += f"{problem.codebook.dtype}: "
    if wrong:
        row = wrong[0]
        return told + f"{len(wrong)} wrong ids, row {row}: expected {expected[row]}, got {got[row]}"
    if margin is not None:
        for row, (value, gap) in enumerate(zip(margin.tolist(), gaps, strict=True)):
            if not margin_is_right(value, gap):
                return told + f"margin of row {row}: expected {gap if gap is None else float(gap)}, got {value}"
    return ""
