"""What decoders print about an image, such as libtiff's warnings: told with the image's name, which they don't know.

They print to the file descriptor of standard error, so that this is led to a file while an image is decoded. One image
at a time: what a second thread decodes meanwhile keeps its remarks without a name.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from seed_fast._text import printable

_STDERR = 2
_MOST_LINES, _MOST_BYTES = 3, 2000  # of one image


class _Redirection:
    """Standard error, led away and back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: int | None = None  # a descriptor, as long as the process lives
        self._own: int | None = None  # the real standard error, while another is in its place
        self._owner: object = None

    def begin(self, owner: object) -> None:
        """Lead standard error away, unless another has; `end` and `give_back` lead it back."""
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
        """What was printed since `begin`; nothing if standard error was given back in between."""
        with self._lock:
            if self._owner is not owner or self._file is None:
                return b""
            self._lead_back()
            os.lseek(self._file, 0, os.SEEK_SET)
            return os.read(self._file, _MOST_BYTES)

    def give_back(self) -> None:
        """Lead it back for good, where a decoder doesn't come back."""
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
    """Print what is printed inside as `warning: NAME: ...`, and only the first lines of it."""
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
    """Let messages be read again, though a decoder in another thread of this process is still at work."""
    _redirection.give_back()
