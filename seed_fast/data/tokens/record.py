"""Filling a token store: items in their order, recorded block by block, bad ones named and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from seed_fast.data.progress import ProgressReporter
from seed_fast.data.tokens.writer import TokensWriter

BLOCK = 256  # items that a kill can cost
_BLOCK_SECONDS = 10.0


class NoSamples(ValueError):
    """The inputs hold no sample that can be stored."""


class Item(NamedTuple):
    """The sample at one place of an input, or one line that names the place and says why there is none."""

    place: int
    sample: dict[str, Any] | None
    problem: str | None


Items = Generator[Item, None, None]
# Gives the items from a place on, and calls its second argument with one line for each input that can't be read.
ItemsFrom = Callable[[int, Callable[[str], None]], Items]


@dataclass
class FillSummary:
    """Counts and time of a run that fills a store."""

    written: int = 0  # samples recorded by this run
    resumed: int = 0  # samples recorded before
    skipped: int = 0  # inputs that gave no sample, in all runs; each was named
    bad_inputs: int = 0  # files that could not be read to their end
    seconds: float = 0.0

    @property
    def left_out(self) -> int:
        """Number of samples and inputs that could not be used."""
        return self.skipped + self.bad_inputs


def fill(
    writer: TokensWriter,
    run: dict[str, Any],
    items_from: ItemsFrom,
    progress: ProgressReporter,
    *,
    resume: bool = False,
    overwrite: bool = False,
    total: int | None = None,
    block: int = BLOCK,
) -> FillSummary:
    """Fill a store with all items, or with those that an earlier run has not recorded. The writer is closed at the end.

    Args:
        writer: the store to fill, not opened yet.
        run: description of everything on which the samples depend; a resumed run must have the same.
        items_from: returns the items from a place on.
        progress: receives a line for each bad input and skipped item, and the number of items done.
        resume: go on with what an earlier run has left, if there is any.
        overwrite: drop what an earlier run has left.
        total: number of places in the input, if it is known.
        block: number of items that are recorded together.

    Raises:
        NoSamples: there is no item at all; nothing has been made or dropped.
        OSError: no input could be read, or the store can't be written.
        OutputError: the folder belongs to another run, or another process writes it.
    """
    summary = FillSummary()

    def bad_input(line: str) -> None:
        summary.bad_inputs += 1
        progress.line(f"bad input: {line}")

    # A resumed run opens the store first, to know how far the earlier one came.
    begun = resume and bool(writer.leftovers())
    try:
        if begun:
            writer.open(run, resume=True)
        if total is not None:
            progress.expect(total - writer.next_place)
        if writer.complete:
            summary.resumed, summary.skipped = writer.samples, writer.skipped
            progress.line(f"{writer.folder}: finished by an earlier run")
            return summary

        with closing(items_from(writer.next_place, bad_input)) as items:
            # A new store is begun when its first item is there: until then nothing is made, and nothing dropped.
            first = next(items, None)
            if not begun:
                if first is None and writer.is_whole:
                    error = OSError if summary.bad_inputs else NoSamples
                    raise error("the inputs hold no sample that can be read")
                writer.open(run, resume=False, overwrite=overwrite)
            record(writer, chain([] if first is None else [first], items), summary, progress, block)
    finally:
        writer.close()
    return summary


def record(
    writer: TokensWriter, items: Iterable[Item], summary: FillSummary, progress: ProgressReporter, block: int = BLOCK
) -> None:
    """Append every item and finish the store. An exception leaves what was recorded for a resumed run.

    Args:
        writer: the store to fill, opened.
        items: the items from `writer.next_place` on.
        summary: counts, which are updated.
        progress: receives a line for each skipped item, and the number of items done.
        block: number of items that are recorded together.
    """
    start = last = time.monotonic()
    summary.resumed = writer.samples
    samples: list[dict[str, Any]] = []
    count = skipped = 0

    def flush(next_place: int) -> None:
        nonlocal samples, count, skipped
        for problem in writer.append(samples, next_place=next_place, skipped=skipped):
            progress.line(f"skipped: {problem}")
        progress.advance(count)
        samples, count, skipped = [], 0, 0

    # A block ends after `block` items, or sooner where items come slowly, so that a kill costs some seconds at most.
    for place, sample, problem in items:
        count += 1
        if sample is None:
            skipped += 1
            progress.line(f"skipped: {problem}")
        else:
            samples.append(sample)
        if count >= block or time.monotonic() - last > _BLOCK_SECONDS:
            flush(place + 1)
            last = time.monotonic()
    if count:
        flush(place + 1)

    writer.finish()
    summary.written, summary.skipped = writer.samples - summary.resumed, writer.skipped
    summary.seconds = time.monotonic() - start
