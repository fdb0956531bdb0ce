"""`ProgressReporter`: what a long run tells its caller. `seed_fast._terminal.ProgressBar` is one."""

from __future__ import annotations

from typing import Protocol


class ProgressReporter(Protocol):
    """Receives what a run has to say, and how far it is."""

    def line(self, text: str) -> None:
        """Take one line for the person who watches."""

    def advance(self, images: int) -> None:
        """Count so many more images (or items) as done."""

    def expect(self, images: int) -> None:
        """Take the number of images (or items) that this run will have done in all, as far as it is known."""
