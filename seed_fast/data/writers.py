"""Writers of codes: one JSON-lines file, or a folder of numbered `.npz` parts. Both survive a kill at any moment.

Every batch is first appended to a journal, `<name>.partial`. A full one is renamed to the output (`JsonlWriter`), or
packed into a part (`NpzWriter`). Beside it a description of the run keeps a resumed run from mixing the codes of two
models.

With a split i/n each process writes its own files: `codes.jsonl` becomes `codes.00001-of-00004.jsonl`.
"""

from __future__ import annotations

import io
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from seed_fast._files import OtherRun, OutputError, OutputLock, write_beside
from seed_fast._outputs import STDOUT
from seed_fast.data.journal import Journal, check_run, codes_lines, opened, read_journal, write_run
from seed_fast.data.shards import WHOLE, Split

PART_IMAGES = 10_000


class Writer(Protocol):
    """A writer of codes. `recorded` must be read to its end before the first `append`."""

    output: Path
    complete: bool  # an earlier run has finished it, and it takes no more
    unchecked: bool  # it goes on from a partial file that has lost the description of its run

    def leftovers(self) -> list[Path]:
        """Return the files of an earlier run; nothing may overwrite them unasked."""

    def open(self, run: dict[str, Any], *, resume: bool, overwrite: bool = True) -> None:
        """Prepare for writing; without `resume` whatever an earlier run has left is dropped.

        Args:
            overwrite: False: files of another run are an error (without `resume`), and stay.

        Raises:
            OutputError: the output belongs to a run with another description, or another process writes it; nothing is
                changed.
        """

    def recorded(self) -> Iterator[str]:
        """Yield the paths that an earlier run has recorded, in the order of their lines."""

    def append(self, paths: Sequence[str], codes: np.ndarray) -> None:
        """Record codes [B, N] of B images; when this returns, a kill can't lose them."""

    def finish(self) -> None:
        """Give everything its final name."""

    def close(self) -> None:
        """Close all files, and leave everything for a resumed run."""


class JsonlWriter:
    """Writes one file of `{"path": ..., "codes": [...]}` lines."""

    def __init__(self, output: Path, split: Split = WHOLE) -> None:
        self.output = output if split.count == 1 else output.with_name(f"{output.stem}{_part_of(split)}{output.suffix}")
        self.complete = self.unchecked = False
        self._partial = self.output.with_name(self.output.name + ".partial")
        self._run = self.output.with_name(self.output.name + ".partial.meta")
        self._journal: Journal | None = None

    def leftovers(self) -> list[Path]:
        return [path for path in (self.output, self._partial) if path.exists()]

    def open(self, run: dict[str, Any], *, resume: bool, overwrite: bool = True) -> None:
        if resume and self.output.exists() and not self._partial.exists():
            self.complete = True
            return
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(self._partial)  # nobody else has it from here on
        begun = self._journal.was_begun
        try:
            if not resume and not overwrite and (begun or self.output.exists()):
                raise left_meanwhile(self.output)
            if resume and begun and self._run.exists():
                check_run(self._run, run, self._partial)
        except OutputError:
            if begun:
                self._journal.close()
            else:
                self._journal.remove()
            raise
        self.unchecked = resume and begun and not self._run.exists()
        if not resume:
            self._journal.clear()
        write_run(self._run, run)

    def recorded(self) -> Iterator[str]:
        return (path for path, _ in read_journal(self.output if self.complete else self._partial))

    def append(self, paths: Sequence[str], codes: np.ndarray) -> None:
        opened(self._journal).append(paths, codes)

    def finish(self) -> None:
        if self._journal is not None:
            self._journal.rename(self.output)
        self._run.unlink(missing_ok=True)

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()


class StdoutWriter:
    """Writes lines to standard output as they come; such a run can't be resumed."""

    output = STDOUT
    complete = unchecked = False

    def leftovers(self) -> list[Path]:
        return []

    def open(self, run: dict[str, Any], *, resume: bool, overwrite: bool = True) -> None:
        if resume:
            raise OutputError("-: a run that writes to standard output can't be resumed")

    def recorded(self) -> Iterator[str]:
        return iter(())

    def append(self, paths: Sequence[str], codes: np.ndarray) -> None:
        sys.stdout.write(codes_lines(paths, codes))
        sys.stdout.flush()

    def finish(self) -> None: ...

    def close(self) -> None: ...


class NpzWriter:
    """Writes `codes.00000.npz`, `codes.00001.npz`, ... into a folder: `paths` (strings [n]), `codes` (uint16 [n, N]).

    Codes are int32 if the codebook has more than 65536 entries. `codes.run.json` describes the run.
    """

    def __init__(
        self, output: Path, split: Split = WHOLE, *, codebook_size: int = 8192, part_images: int = PART_IMAGES
    ) -> None:
        self.output = output
        self.complete = self.unchecked = False
        self._name = "codes" if split.count == 1 else f"codes{_part_of(split)}"
        self._run = output / f"{self._name}.run.json"
        self._dtype = np.uint16 if codebook_size <= 65536 else np.int32
        self._part_images = part_images
        self._parts = 0  # finished ones
        self._count = 0  # images in the journal of the next
        self._journal: Journal | None = None
        self._lock: OutputLock | None = None

    def leftovers(self) -> list[Path]:
        if not self.output.is_dir():
            return [self.output] if self.output.exists() else []
        names = sorted(os.listdir(self.output))
        ours = (f"{self._name}.{number:05d}" for number in itertools.count())
        found = [self.output / name for name in names if name == self._run.name]
        for stem in ours:
            files = [self.output / (stem + suffix) for suffix in (".npz", ".partial") if stem + suffix in names]
            if not files:
                break
            found += files
        return found

    def open(self, run: dict[str, Any], *, resume: bool, overwrite: bool = True) -> None:
        if self.output.exists() and not self.output.is_dir():
            raise OutputError(f"{self.output}: must be a folder for .npz parts, got a file")
        self.output.mkdir(parents=True, exist_ok=True)
        self._lock = OutputLock(self.output / f".{self._name}.lock", self.output)  # before anything is deleted
        try:
            self._open(run, resume, overwrite)
        except OutputError:
            self.close()
            raise

    def _open(self, run: dict[str, Any], resume: bool, overwrite: bool) -> None:
        before = self.leftovers()
        if not resume:
            if before and not overwrite:
                raise left_meanwhile(self.output)
            for path in before:
                path.unlink()
        elif self._run.exists():
            check_run(self._run, run, self.output)
        else:
            self.unchecked = bool(before)
        while self._file(".npz").exists():
            # Its journal is still there if a kill came between the part and the end of the journal.
            self._file(".partial").unlink(missing_ok=True)
            self._parts += 1
        self._journal = Journal(self._file(".partial"))
        write_run(self._run, run)

    def _file(self, suffix: str) -> Path:
        return self.output / f"{self._name}.{self._parts:05d}{suffix}"

    def recorded(self) -> Iterator[str]:
        for part in range(self._parts):
            yield from _paths_of_part(self.output / f"{self._name}.{part:05d}.npz")
        for path, _ in read_journal(self._file(".partial")):
            self._count += 1
            yield path

    def append(self, paths: Sequence[str], codes: np.ndarray) -> None:
        while len(paths):
            room = max(0, self._part_images - self._count)
            opened(self._journal).append(paths[:room], codes[:room])
            self._count += len(paths[:room])
            paths, codes = paths[room:], codes[room:]
            if self._count >= self._part_images:
                self._pack()
                self._journal = Journal(self._file(".partial"))

    def _pack(self) -> None:
        """Turn the journal into the next part."""
        journal = opened(self._journal)
        journal.sync()
        journal.close()
        records = list(read_journal(journal.path))
        content = io.BytesIO()
        codes = np.array([codes for _, codes in records], dtype=self._dtype)
        np.savez(content, paths=np.array([path for path, _ in records], dtype=np.str_), codes=codes)
        write_beside(self._file(".npz"), content.getvalue())
        journal.path.unlink()
        self._parts, self._count = self._parts + 1, 0

    def finish(self) -> None:
        if self._count:
            self._pack()
        else:
            opened(self._journal).remove()
        self.close()

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
        if self._lock is not None:
            self._lock.release()


def left_meanwhile(output: Path) -> OtherRun:
    """Return the error for an output that was not there when the command began, and is now."""
    return OtherRun(f"{output}: another run has begun or finished it meanwhile")


def _part_of(split: Split) -> str:
    return f".{split.index:05d}-of-{split.count:05d}"


def _paths_of_part(path: Path) -> list[str]:
    try:
        with np.load(path, allow_pickle=False) as part:
            return part["paths"].tolist()
    except Exception as error:
        raise OutputError(f"{path}: must be a part written by seed-fast, got: {error}") from error
