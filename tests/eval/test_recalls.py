"""Recall against its definition, spelled out image by image, and what ties and bad arrays do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seed_fast.eval import recalls as module
from seed_fast.eval.recalls import recalls


def brute_force(images: np.ndarray, texts: np.ndarray, owner: np.ndarray, k: int) -> tuple[float, float]:
    """TR@k and IR@k by sorting, the right answers last among equals. For features of small integers: exact scores."""

    def best(row: np.ndarray, others: np.ndarray, right: np.ndarray) -> list[int]:
        return sorted(range(len(others)), key=lambda other: (-(row @ others[other]), right[other]))[:k]

    everyone = np.arange(len(images))
    found = [image in owner[best(images[image], texts, owner == image)] for image in everyone]
    back = [owner[text] in best(texts[text], images, everyone == owner[text]) for text in range(len(texts))]
    return 100 * float(np.mean(found)), 100 * float(np.mean(back))


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 20), st.integers(1, 3), st.integers(0, 2**31), st.booleans())
def test_recalls_are_those_of_the_definition(images: int, more: int, width: int, seed: int, in_chunks: bool) -> None:
    """Small integers make many ties; images have one or several captions, in any order."""
    draws = np.random.default_rng(seed)
    owner = draws.permutation(np.concatenate([np.arange(images), draws.integers(0, images, more)]))
    image_features = draws.integers(-2, 3, (images, width))
    text_features = draws.integers(-2, 3, (len(owner), width))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", 5 if in_chunks else 512)
        found = recalls(image_features, text_features, owner, ks=(1, 2, 5))
    for k in (1, 2, 5):
        expected = brute_force(image_features, text_features, owner, k)
        assert (found[f"TR@{k}"], found[f"IR@{k}"]) == pytest.approx(expected)
    each = [found[f"{way}@{k}"] for way in ("TR", "IR") for k in (1, 2, 5)]
    assert found["R@mean"] == pytest.approx(np.mean(each))


def test_perfect_features_have_full_recall_and_shuffled_ones_that_of_chance() -> None:
    rows = np.random.default_rng(0).normal(size=(400, 32))
    assert set(recalls(rows, rows, range(400)).values()) == {100.0}
    by_chance = recalls(rows, rows[::-1], np.roll(np.arange(400), 7))
    assert by_chance["R@mean"] < 6


def test_features_that_all_agree_have_no_recall() -> None:
    """A collapsed model ties everywhere; by luck of the order it must not win."""
    rows = np.ones((50, 8)) / np.sqrt(8)
    assert set(recalls(rows, rows, range(50)).values()) == {0.0}


def test_ties_count_as_ties_whatever_the_rounding() -> None:
    row = np.random.default_rng(0).normal(size=256).astype(np.float32)
    row /= np.linalg.norm(row)
    images = np.stack([row, row])
    almost = row.astype(np.float64) * (1 + 1e-15)
    assert recalls(images, np.stack([row, row]), [0, 1])["TR@1"] == 0
    assert recalls(images * 1e-18, np.stack([row, almost]) * 1e18, [0, 1])["IR@1"] == 0
    assert recalls(images, np.stack([row * 1.001, row]), [0, 1])["TR@1"] == 50, "a difference that is none of rounding"


def test_tensors_of_any_float_type_are_taken() -> None:
    rows = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float64, torch.float32, torch.float16):
        assert recalls(rows.to(dtype), rows.to(dtype), list(range(20)))["R@mean"] == 100


@pytest.mark.parametrize(
    ("images", "texts", "owner", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), [0, 1], "widths must be equal"),
        (np.ones(3), np.ones((2, 3)), [0, 1], r"image_features must be \[N, P\]"),
        (np.ones((0, 3)), np.ones((2, 3)), [0, 1], r"image_features must be \[N, P\]"),
        (np.ones((2, 3)), np.ones((2, 3)), [0], r"image_of_text must be \[2\] integers"),
        (np.ones((2, 3)), np.ones((2, 3)), [0.0, 1.0], r"image_of_text must be \[2\] integers, got float64"),
        (np.ones((2, 3)), np.ones((2, 3)), [0, 2], r"must be in 0..1, got 0..2"),
        (np.ones((2, 3)), np.ones((2, 3)), [0, -1], r"must be in 0..1, got -1..0"),
        (np.ones((2, 3)), np.ones((2, 3)), [0, 0], "image 1 has none"),
        (np.ones((2, 3)), np.array([[1, 1, 1], [1, np.nan, 1]]), [0, 1], "text_features must be finite, row 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(images: object, texts: object, owner: list, message: str) -> None:
    with pytest.raises(ValueError, match=f"recalls: .*{message}"):
        recalls(images, texts, owner)
