"""Print messages and progress to standard error, even if it is closed or a message holds undecodable file names."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from typing import TextIO

from seed_fast._remarks import give_back_stderr
from seed_fast._text import printable

SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """A progress bar with a speed on a terminal, and a plain line every ten seconds anywhere else.

    Args:
        stream: where to write; default: standard error.
        total: number of units, if it is known.
        unit: name of what is counted. Bytes are shown in thousands, millions and so on.
        done: number of units that an earlier run has done; the speed leaves them out.
    """

    def __init__(
        self, stream: TextIO | None = None, total: int | None = None, unit: str = "images", done: int = 0
    ) -> None:
        self._stream = stream  # None: standard error at the time of writing
        self._start = self._last = time.monotonic()
        self._before, self._done, self._total, self._unit = done, done, total, unit
        self._note = ""
        self._bar = None
        shown = stream or sys.stderr
        if shown is not None and shown.isatty():
            self._stream = shown
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=done, unit=f" {unit}", unit_scale=unit == "bytes", file=shown, dynamic_ncols=True
            )

    def line(self, text: str) -> None:
        """Print one line of text; undecodable bytes of file names in it are escaped."""
        if self._bar is not None:
            self._bar.write(printable(text), file=self._stream)
        else:
            tell(text, self._stream)

    def output(self, text: str) -> None:
        """Print one line on standard output without breaking the bar: both may be on the same terminal."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()
        else:
            print(text, flush=True)

    def expect(self, total: int) -> None:
        """Set the number of units in total; it may come late, and change."""
        self._total = max(total, self._done)
        if self._bar is not None and self._bar.total != self._total:
            self._bar.total = self._total
            self._bar.refresh()

    def note(self, text: str) -> None:
        """Set what is shown after the speed from now on, such as a loss."""
        self._note = f", {text}"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def per_second(self) -> float:
        """Return the mean speed since this object was made, in units per second."""
        return (self._done - self._before) / max(1e-9, time.monotonic() - self._start)

    def advance(self, count: int) -> None:
        """Count so many more units as done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            rate = self.per_second()
            of = left = ""
            if self._total is not None and rate:
                of, seconds = f" of {self._shown(self._total)}", (self._total - self._done) / rate
                left = f", {timedelta(seconds=round(seconds))} left"
            speed = self._shown(rate) if self._unit == "bytes" else f"{rate:.1f}"
            self.line(f"{self._shown(self._done)}{of} {self._unit}, {speed} {self._unit}/s{left}{self._note}")

    def _shown(self, count: float) -> str:
        if self._unit != "bytes":
            return str(count)
        from tqdm import tqdm

        return tqdm.format_sizeof(count)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()


def tell(text: str, stream: TextIO | None = None, *, lines: bool = False) -> None:
    """Print a message; it is dropped where nobody can read it (standard error is closed or full).

    Args:
        text: one line; control characters and undecodable bytes in it are escaped.
        stream: where to write; default: standard error.
        lines: True if `text` is several lines that this package has made, which need no escapes.
    """
    stream = stream or sys.stderr
    if stream is None:
        return
    give_back_stderr()
    try:
        print(text if lines else printable(text), file=stream, flush=True)
    except (OSError, ValueError):  # ValueError: closed by Python
        if stream is sys.stderr:  # what it still holds would make the exit code 120
            sys.stderr = _nowhere()


def complain(text: str) -> None:
    """Print one line on standard error, after the name of the command."""
    tell(f"seed-fast: {text}")


def open_standard_streams() -> None:
    """Open /dev/null for each closed standard stream; otherwise the next file opened would take its place."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest descriptor that is free
    if sys.stdout is None:
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # as long as the process lives
