"""What the loop asks of data: batches, and an exact position in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

Batch = dict[str, Any]  # of pictures: pixels [B, 3, S, S] float32, captions list[str], keys list[str]


class Batches(Protocol):
    """The batches of one rank, in an order of their own for each epoch.

    `iter` goes on from the position, ends with the epoch, and the next `iter` begins the next epoch (one that never
    ends is fine too). All batches of a run have the same size. `seed_fast.data.pairs.open_pairs` makes these of files.
    """

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches after the position."""

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch yielded, for JSON; the same on every rank, so that any number can go on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position: nothing before it comes again, nothing after it is left out."""


def endless(batches: Batches) -> Iterator[Batch]:
    """Epoch after epoch.

    Raises:
        ValueError: an epoch has no batch.
    """
    empty = 0  # one in a row may be: a run that goes on from the very end of an epoch
    while empty < 2:
        empty += 1
        for batch in batches:
            empty = 0
            yield batch
    raise ValueError(
        "data: an epoch must have at least one batch on every rank, got none: fewer samples than one batch?"
    )
