"""Edits of codes and of embeddings: what a person would play with before a picture is drawn.

Codes are in causal order: the first ones say most. So an image can keep its first codes and take the rest from another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from seed_fast.model.tokenizer import SeedTokenizer


def join_codes(first: Sequence[int], other: Sequence[int], length: int) -> list[int]:
    """Return the first `length` codes of one image, followed by those of another image from there on.

    Raises:
        ValueError: the images have different numbers of codes, or `length` is none of 0 .. N.

    Examples:
        >>> join_codes([1, 2, 3], [7, 8, 9], 1)
        [1, 8, 9]
    """
    if len(first) != len(other):
        raise ValueError(f"join_codes: images must have the same number of codes, got {len(first)} and {len(other)}")
    _check_length("join_codes", length, len(first))
    return [*first[:length], *other[length:]]


def set_codes(codes: Sequence[int], changes: Mapping[int, int]) -> list[int]:
    """Return codes with some of them changed.

    Args:
        codes: codes of an image.
        changes: place from 0 to its new code.

    Raises:
        ValueError: a place is none of the image's.

    Examples:
        >>> set_codes([1, 2, 3], {2: 9})
        [1, 2, 9]
    """
    changed = list(codes)
    for place, code in changes.items():
        if not 0 <= place < len(changed):
            raise ValueError(f"set_codes: a place must be in 0..{len(changed) - 1}, got {place}")
        changed[place] = code
    return changed


@torch.inference_mode()
def decode_prefix(tok: SeedTokenizer, codes: Any, length: int) -> Tensor:
    """Turn the first codes of images into what conditions an image generator, as `SeedTokenizer.decode` does with all.

    The places after the prefix hold the mean of all code embeddings, which says nothing of an image. The decoder has
    not been trained on such places: what it makes of them shows what the prefix holds, and is no prediction.

    Args:
        tok: the tokenizer.
        codes: [B, N] integers.
        length: number of codes that are kept; N: all of them, which is `decode`.

    Returns:
        Text features [B, T, G] (SEED-1) or image embeddings [B, G] (SEED-2).

    Raises:
        TypeError, ValueError: the codes are none of this tokenizer, or `length` is none of 0 .. N.

    Examples:
        >>> tok = SeedTokenizer.from_pretrained("seed-tiny")
        >>> decode_prefix(tok, torch.zeros(2, 32, dtype=torch.int64), 8).shape
        torch.Size([2, 128])
    """
    codes_BN = tok.check_codes("decode_prefix", codes)
    _check_length("decode_prefix", length, tok.config.num_codes)
    x_BNC = tok.quantizer(codes_BN).clone()
    if length < tok.config.num_codes:
        every = torch.arange(tok.config.codebook_size, device=tok.device)
        x_BNC[:, length:] = tok.quantizer(every[None])[0].float().mean(0).to(x_BNC.dtype)
    return tok.head(tok.generator(x_BNC))


def interpolate(first: Tensor, other: Tensor, count: int) -> Tensor:
    """Return embeddings that lead from one image to another, both ends included.

    Image embeddings go along the great circle between their directions, their lengths linearly (as unCLIP, arXiv
    2204.06125, interpolates images); text features go linearly.

    Args:
        first: an image embedding [G] or text features [T, G].
        other: that of the other image, of the same shape.
        count: number of embeddings, at least 2.

    Returns:
        Embeddings [count, G] or [count, T, G].

    Raises:
        ValueError: the shapes differ, or `count` is below 2.

    Examples:
        >>> interpolate(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]), 3)[1]
        tensor([1.4142, 1.4142])
    """
    if first.shape != other.shape or first.ndim not in (1, 2):
        raise ValueError(
            "interpolate: embeddings must have the same shape, [G] or [T, G], "
            f"got {list(first.shape)} and {list(other.shape)}"
        )
    if count < 2:
        raise ValueError(f"interpolate: count must be at least 2, got {count}")
    begin, end = first.double(), other.double()
    share = torch.linspace(0, 1, count, dtype=torch.float64, device=first.device).view(-1, *[1] * first.ndim)
    between = torch.lerp(begin[None], end[None], share)
    if first.ndim == 1:
        lengths = begin.norm(), end.norm()
        cosine = (begin @ end / (lengths[0] * lengths[1])).clamp(-1, 1)
        angle = cosine.arccos()
        # Equal directions have no circle between them, opposite ones have many: both go linearly.
        if angle.sin() > 1e-6:
            directions = ((1 - share) * angle).sin() * begin / lengths[0] + (share * angle).sin() * end / lengths[1]
            between = directions / angle.sin() * torch.lerp(lengths[0], lengths[1], share)
    between = between.to(first.dtype)
    between[0], between[-1] = first, other
    return between


def _check_length(caller: str, length: int, num_codes: int) -> None:
    if not 0 <= length <= num_codes:
        raise ValueError(f"{caller}: length must be in 0..{num_codes}, got {length}")
