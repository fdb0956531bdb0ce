"""Recall@k of image-text retrieval: how often a picture and its caption find each other among the first k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

KS = (1, 5, 10)
CHUNK = 512  # pictures whose scores against all captions are in memory at once


def recalls(
    image_features: Any, text_features: Any, image_of_text: Sequence[int] | np.ndarray, ks: Sequence[int] = KS
) -> dict[str, float]:
    """Return R@k in both directions and their mean, in percent, as in Table 1 of the SEED paper (arXiv 2307.08041).

    TR@k is the share of images that have one of their captions among the k best; IR@k is the share of captions that
    have their image among the k best. Features are compared by inner product, in float64. Scores that are equal, or
    differ by rounding only, count against the model: whatever scores as high as the right answer is ranked before it.

    Args:
        image_features: [I, P], an array or CPU tensor of any float type; unit vectors if cosines are to be compared.
        text_features: [T, P], likewise.
        image_of_text: [T] integers: the image that each caption belongs to. Every image has at least one caption.
        ks: the numbers k.

    Returns:
        {"TR@1", ..., "IR@1", ..., "R@mean"}; the last is the mean of all others.

    Raises:
        ValueError: the arrays don't fit each other, hold infinities or NaN, or an image has no caption.

    Examples:
        >>> recalls([[1, 0], [0, 1]], [[1, 0], [0, 1], [0.9, 0.1], [0.8, 0.2]], [0, 1, 1, 0], ks=[1])
        {'TR@1': 100.0, 'IR@1': 75.0, 'R@mean': 87.5}
    """
    images = _features("image_features", image_features)
    texts = _features("text_features", text_features)
    owner = np.asarray(image_of_text)
    if images.shape[1] != texts.shape[1]:
        raise ValueError(f"recalls: widths must be equal, got {list(images.shape)} and {list(texts.shape)}")
    if owner.shape != (len(texts),) or not np.issubdtype(owner.dtype, np.integer):
        raise ValueError(
            f"recalls: image_of_text must be [{len(texts)}] integers, got {owner.dtype} {list(owner.shape)}"
        )
    if owner.min() < 0 or owner.max() >= len(images):
        raise ValueError(f"recalls: image_of_text must be in 0..{len(images) - 1}, got {owner.min()}..{owner.max()}")
    captions = np.bincount(owner, minlength=len(images))
    if not captions.all():
        raise ValueError(f"recalls: every image must have a caption, image {int(captions.argmin())} has none")
    text_ranks, image_ranks = _ranks(images, texts, owner)
    shares = {f"TR@{k}": 100 * float((text_ranks < k).mean()) for k in ks}
    shares |= {f"IR@{k}": 100 * float((image_ranks < k).mean()) for k in ks}
    return shares | {"R@mean": float(np.mean(list(shares.values())))}


def _features(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"recalls: {name} must be [N, P] with N and P at least 1, got {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"recalls: {name} must be finite, row {int(np.argmin(np.isfinite(array).all(1)))} isn't")
    return array


def _ranks(images: np.ndarray, texts: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many wrong captions rank before an image's best, [I], and wrong images before a caption's own, [T]."""
    # Twice the bound on the rounding error of an inner product of this length, whatever the order of summation.
    length = images.shape[1]
    largest = np.linalg.norm(images, axis=1).max() * np.linalg.norm(texts, axis=1).max()
    tolerance = 4 * length * np.finfo(np.float64).eps * largest
    # The score of each caption with its own image, and of each image with the best of its captions.
    own = np.einsum("tp,tp->t", images[owner], texts)
    best = np.full(len(images), -np.inf)
    np.maximum.at(best, owner, own)
    # Count what scores as high, in chunks of images, since all scores at once may not fit into memory.
    text_ranks = np.empty(len(images), dtype=np.int64)
    image_ranks = np.zeros(len(texts), dtype=np.int64)
    for begin in range(0, len(images), CHUNK):
        rows = np.arange(begin, min(begin + CHUNK, len(images)))
        scores = images[rows] @ texts.T
        wrong = owner[None, :] != rows[:, None]
        text_ranks[rows] = (wrong & (scores >= best[rows, None] - tolerance)).sum(axis=1)
        image_ranks += (wrong & (scores >= own[None, :] - tolerance)).sum(axis=0)
    return text_ranks, image_ranks
