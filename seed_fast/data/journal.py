"""An append-only file of codes that survives a kill at any moment, and the description of the run that writes it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from seed_fast._files import OtherRun, OutputError, open_locked, publish, write_all, write_beside, writing
from seed_fast._text import parse_json, read_json


class Journal:
    """A file of `{"path": ..., "codes": [...]}` lines. A kill can tear at most the last; opening cuts such a tail off.

    The file is locked while it is open, so that a job started twice can't write every line twice.

    Args:
        path: the file; made if it is missing.

    Raises:
        OutputError: another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_locked(path)
        self.was_begun = os.fstat(self._file.fileno()).st_size > 0  # the file was not empty when it was opened
        self._file.truncate(_end_of_last_line(self._file))

    def clear(self) -> None:
        """Drop all lines."""
        self._file.truncate(0)

    def append(self, paths: Sequence[str], codes: np.ndarray) -> None:
        """Append one line per image. When this returns, the operating system has them: a kill can't lose them."""
        self.write(codes_lines(paths, codes).encode())

    def write(self, lines: bytes) -> None:
        """Append whole lines, whatever they hold."""
        with writing(self.path):
            write_all(self._file, lines)

    def sync(self) -> None:
        """Force what was appended to the disk."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def rename(self, path: Path) -> None:
        """Force the file to the disk, give it another name, and close it; until then nobody else can have it."""
        publish(self._file, self.path, path)

    def remove(self) -> None:
        """Remove the file, and close it."""
        if os.name == "nt":  # which removes no open file
            self.close()
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def opened(journal: Journal | None) -> Journal:
    """Return the journal of a writer.

    Raises:
        RuntimeError: the writer has not been opened.
    """
    if journal is None:
        raise RuntimeError("a writer must be opened before anything is written")
    return journal


def codes_lines(paths: Sequence[str], codes: np.ndarray) -> str:
    """Return the JSON lines of B images and their codes [B, N]."""
    rows = zip(paths, codes.tolist(), strict=True)
    return "".join(json.dumps({"path": path, "codes": row}, separators=(",", ":")) + "\n" for path, row in rows)


def read_journal(path: Path) -> Iterator[tuple[str, list[int]]]:
    """Yield (path, codes) of each line, in order.

    Raises:
        OutputError: a line is not of this form.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = parse_json(line)
                yield record["path"], record["codes"]
            except (ValueError, KeyError, TypeError):
                raise OutputError(f'{path}: line {number} must be {{"path", "codes"}}, got {line[:80]!r}') from None


def check_run(path: Path, run: dict[str, Any], output: Path) -> None:
    """Compare the description of the run that began an output with that of the run which wants to go on.

    Raises:
        OtherRun: they differ; the message says in what.
    """
    try:
        before = dict(read_json(path))
    except (ValueError, TypeError) as error:
        raise OtherRun(f"{path}: must describe a run, got something else ({error})") from None
    changes = [
        f"{key} was {_short(before.get(key))}, is {_short(run[key])}" for key in run if before.get(key) != run[key]
    ]
    if changes:
        raise OtherRun(f"{output}: begun by another run: {'; '.join(changes)}")


def write_run(path: Path, run: dict[str, Any]) -> None:
    """Write the description of a run as JSON."""
    write_beside(path, (json.dumps(run, indent=1) + "\n").encode())


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _end_of_last_line(file: BinaryIO) -> int:
    """Return the number of bytes up to and including the last line end, reading backwards block by block."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
