"""The interface between the training loop and its data: batches, and an exact position in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

Batch = dict[str, Any]  # for images: pixels [B, 3, S, S] float32, captions list[str], keys list[str]


class Batches(Protocol):
    """The batches of one rank, in another order in each epoch.

    Iterating starts at the position and ends with the epoch; iterating again starts the next epoch (an epoch may also
    be endless). All batches of a run have the same size. `seed_fast.data.pairs.open_pairs` returns such batches.
    """

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from the position to the end of the epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch, for JSON; the same on all ranks, so that any number can resume."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move to a position: no batch before it comes again, none after it is left out."""


def endless(batches: Batches) -> Iterator[Batch]:
    """Yield the batches of epoch after epoch.

    Raises:
        ValueError: an epoch has no batch.
    """
    empty = 0  # epochs in a row; one may be empty, where a run resumes at the very end of an epoch
    while empty < 2:
        empty += 1
        for batch in batches:
            empty = 0
            yield batch
    raise ValueError(
        "data: an epoch must have at least one batch on every rank, got none: fewer samples than one batch?"
    )
