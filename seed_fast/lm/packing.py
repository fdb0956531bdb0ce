"""Sequences into rows of one length: several to a row (packing), or one to a row (padding).

Samples never see each other: `segments` says which tokens belong together, and positions begin at 0 in each sample. So
a sample has the same loss in a packed row as alone.

Shapes: B rows, T tokens of a row.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from seed_fast.lm.sequences import IGNORED, TokenSequence

if TYPE_CHECKING:
    import torch

FILL_TO = 8  # a padded batch is a multiple of it long, for tensor cores


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which samples share a row: the longest first, each into the fullest row that has room, the first of equals.

    Args:
        lengths: tokens of each sample, at most `room`.
        room: tokens of a row.

    Returns:
        The numbers of the samples of each row; each sample once.

    Raises:
        ValueError: a sample is longer than a row.

    Examples:
        >>> best_fit([2, 7, 5, 3, 3], room=10)
        [[1, 3], [2, 4, 0]]
    """
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # room left and number of each row that isn't full, ascending
    for sample in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        length = lengths[sample]
        if length > room:
            raise ValueError(f"best_fit: a sample must have at most {room} tokens, sample {sample} has {length}")
        at = bisect_left(spaces, (length, 0))
        if at == len(spaces):
            left, row = room, len(rows)
            rows.append([])
        else:
            left, row = spaces.pop(at)
        rows[row].append(sample)
        if left > length:
            insort(spaces, (left - length, row))
    return rows


def collate(rows: Sequence[Sequence[TokenSequence]], *, pad: int, length: int | None = None) -> dict[str, torch.Tensor]:
    """Rows of sequences as one batch.

    Args:
        rows: the sequences of each of B rows, as they follow each other.
        pad: id that fills the end of a row.
        length: T. Default: the longest row, rounded up to a multiple of 8.

    Returns:
        int64 tensors [B, T]: `ids`; `labels`, for each id itself or IGNORED (never set at the beginning of a sample, of
        which the sample before it in the row must learn nothing); `positions`, from 0 in each sample; `segments`, from
        1 in each row, 0 where it is filled.

    Raises:
        ValueError: a row is longer than `length`.
    """
    import torch

    longest = max((sum(map(len, row)) for row in rows), default=0)
    if length is None:
        length = -(-longest // FILL_TO) * FILL_TO
    elif longest > length:
        raise ValueError(f"collate: a row must have at most {length} tokens, got {longest}")
    batch = {
        "ids": np.full((len(rows), length), pad, dtype=np.int64),
        "labels": np.full((len(rows), length), IGNORED, dtype=np.int64),
        "positions": np.zeros((len(rows), length), dtype=np.int64),
        "segments": np.zeros((len(rows), length), dtype=np.int64),
    }
    for number, row in enumerate(rows):
        begin = 0
        for segment, sequence in enumerate(row, 1):
            here = (number, slice(begin, begin + len(sequence)))
            batch["ids"][here] = sequence.ids
            batch["labels"][here] = sequence.labels
            batch["labels"][number, begin] = IGNORED
            batch["positions"][here] = np.arange(len(sequence))
            batch["segments"][here] = segment
            begin += len(sequence)
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def attention_mask(segments: torch.Tensor) -> torch.Tensor:
    """Who may look at whom: bool [B, 1, T, T], True where the token of the row may see that of the column.

    A token sees those before it and itself, of its own sample. What fills a row sees itself, so that no softmax is over
    nothing. transformers takes this as `attention_mask`.

    Args:
        segments: int64 [B, T], as `collate` gives.
    """
    import torch

    length = segments.shape[1]
    same = segments[:, None, :, None] == segments[:, None, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=segments.device)
    return (same & causal & (segments != 0)[:, None, :, None]) | itself
