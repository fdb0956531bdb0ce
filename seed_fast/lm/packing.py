"""Rows of one length from sequences: several to a row (packing), or one to a row (padding).

Samples never see each other: `segments` tells which tokens belong together, and positions begin at 0 in each sample. So
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

FILL_TO = 8  # the length of a padded batch is a multiple of it, for tensor cores


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Assign samples to rows: the longest first, each to the fullest row that has room, the first one among equals.

    Args:
        lengths: number of tokens of each sample, at most `room`.
        room: number of tokens of a row.

    Returns:
        The numbers of the samples of each row; each sample once.

    Raises:
        ValueError: a sample is longer than a row.

    Examples:
        >>> best_fit([2, 7, 5, 3, 3], room=10)
        [[1, 3], [2, 4, 0]]
    """
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # free tokens and number of each row that isn't full, ascending
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
    """Make one batch of rows of sequences.

    Args:
        rows: for each of B rows its sequences, in order.
        pad: id that fills the end of a row.
        length: T. Default: the longest row, rounded up to a multiple of 8.

    Returns:
        int64 tensors [B, T]: `ids`; `labels`, for each id itself or IGNORED (always at the beginning of a sample, which
        the sample before it must not predict); `positions`, from 0 in each sample; `segments`, from 1 in each row, and
        0 for padding.

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
        # Each sequence goes behind the one before it, with positions from 0 and a segment of its own.
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
    """Return the attention mask, bool [B, 1, T, T]: True where the query token (row) attends to the key token (column).

    A token attends to itself and to earlier tokens of its own sample. Padding attends to itself, so that no softmax is
    over nothing. transformers takes this as `attention_mask`.

    Args:
        segments: int64 [B, T], as `collate` gives.
    """
    import torch

    length = segments.shape[1]
    same = segments[:, None, :, None] == segments[:, None, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=segments.device)
    return (same & causal & (segments != 0)[:, None, :, None]) | itself
