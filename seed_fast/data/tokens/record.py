"""The loop of all that fills a store: items in their order, recorded block by block, bad ones named and counted."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

from seed_fast.data.tokens.writer import TokensWriter

BLOCK = 256  # items that a kill can cost
_BLOCK_SECONDS = 10.0


class Item(NamedTuple):
    """What an input gives for one place: a sample, or one line that says why there is none and names it."""

    place: int
    sample: dict[str, Any] | None
    problem: str | None


class Report(Protocol):
    """Where a run tells how it goes."""

    def line(self, text: str) -> None:
        """One line for the person who watches."""

    def advance(self, images: int) -> None:
        """So many more items are done."""


@dataclass
class Summary:
    """How a run went; `to_dict` is the object that `--json` prints."""

    written: int = 0  # samples recorded by this run
    resumed: int = 0  # samples recorded before
    skipped: int = 0  # inputs that gave no sample, by all runs; each was named
    bad_inputs: int = 0  # files that could not be read to their end
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0, or 3 if anything was left out."""
        return 3 if self.skipped or self.bad_inputs else 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"exit_code": self.exit_code}


def record(writer: TokensWriter, items: Iterable[Item], summary: Summary, report: Report, block: int = BLOCK) -> None:
    """Append every item and finish the store. An exception leaves what was recorded for a resumed run.

    Args:
        writer: opened.
        items: from `writer.next_place` on.
        summary: counts; updated.
        report: told each skipped item, and progress.
        block: items that are recorded at once.
    """
    start = last = time.monotonic()
    summary.resumed = writer.samples
    samples: list[dict[str, Any]] = []
    count = skipped = 0

    def flush(next_place: int) -> None:
        nonlocal samples, count, skipped
        for problem in writer.append(samples, next_place=next_place, skipped=skipped):
            report.line(f"skipped: {problem}")
        report.advance(count)
        samples, count, skipped = [], 0, 0

    for place, sample, problem in items:
        count += 1
        if sample is None:
            skipped += 1
            report.line(f"skipped: {problem}")
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
