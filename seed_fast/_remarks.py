"""Repeat what image decoders print, such as libtiff's warnings, with the name of the image, which they don't know.

Decoders print to the file descriptor of standard error, so it is redirected to a file while an image is decoded. This
works for one image at a time: what a second thread decodes meanwhile keeps its messages without a name.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from seed_fast._text import printable

_STDERR = 2
_MOST_LINES, _MOST_BYTES = 3, 2000  # of messages per image


class _Redirection:
    """Redirection of standard error to a temporary file, and back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: int | None = None  # descriptor of the temporary file, open until the process ends
        self._own: int | None = None  # descriptor of the real standard error while it is redirected
        self._owner: object = None

    def begin(self, owner: object) -> None:
        """Redirect standard error, unless another owner has; `end` and `give_back` restore it."""
        with self._lock, suppress(OSError):  # it may be closed
            if self._owner is None:
                if self._file is None:
                    self._file, path = tempfile.mkstemp()
                    os.unlink(path)
                os.ftruncate(self._file, 0)
                os.lseek(self._file, 0, os.SEEK_SET)
                own = os.dup(_STDERR)
                os.dup2(self._file, _STDERR)
                self._own, self._owner = own, owner

    def end(self, owner: object) -> bytes:
        """Restore standard error; return what was printed since `begin`, or nothing if it was restored already."""
        with self._lock:
            if self._owner is not owner or self._file is None:
                return b""
            self._lead_back()
            os.lseek(self._file, 0, os.SEEK_SET)
            return os.read(self._file, _MOST_BYTES)

    def give_back(self) -> None:
        """Restore standard error while a decoder still runs, because it may never return."""
        with self._lock:
            if self._owner is not None:
                self._lead_back()

    def _lead_back(self) -> None:
        if self._own is not None:
            os.dup2(self._own, _STDERR)
            os.close(self._own)
        self._own = self._owner = None


_redirection = _Redirection()


@contextmanager
def named_remarks(name: str) -> Iterator[None]:
    """Print messages of the code inside as `warning: NAME: ...`, the first lines only."""
    owner = object()
    _redirection.begin(owner)
    try:
        yield
    finally:
        printed = _redirection.end(owner)
        if printed:
            lines = [line.strip() for line in printed.decode("utf-8", "replace").splitlines() if line.strip()]
            more = ["(and more)"] if len(lines) > _MOST_LINES or len(printed) == _MOST_BYTES else []
            told = "".join(f"warning: {printable(f'{name}: {line}')}\n" for line in lines[:_MOST_LINES] + more)
            with suppress(OSError):
                os.write(_STDERR, told.encode("utf-8", "replace"))


def give_back_stderr() -> None:
    """Restore standard error, so that messages are visible although a decoder in another thread still runs."""
    _redirection.give_back()
