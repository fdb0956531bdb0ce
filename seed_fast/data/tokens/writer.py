"""Writing a token store so that a kill at any moment loses nothing that was recorded.

Blocks of samples go into a journal, one line each, with the place in the input after them. A journal of
enough samples becomes a shard, and the last shard is followed by the index: a folder with an index is a whole store.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seed_fast._files import OtherRun, OutputError, OutputLock, write_beside
from seed_fast._text import parse_json
from seed_fast.data.journal import Journal, check_run, opened, write_run
from seed_fast.data.shards import WHOLE, Split
from seed_fast.data.tokens.identity import TokenizerIdentity
from seed_fast.data.tokens.samples import KINDS, SampleProblem, check_parts, to_parts
from seed_fast.data.tokens.store import Shard, StoreError, index_bytes, index_name, read_index, shard_bytes
from seed_fast.data.writers import left_meanwhile

SHARD_SAMPLES = 10_000


class TokensWriter:
    """Writes the store of one process: a folder, or this process's part of it.

    Args:
        folder: made if it is missing.
        tokenizer: the tokenizer that makes the codes.
        split: the part of this process among those that write to the folder.
        shard_samples: number of samples in a shard; it ends with the block that reaches this number.

    `next_place` is the place in the input after the last recorded block, `skipped` counts inputs that gave no sample,
    `samples` those recorded. `complete`: an earlier run has finished it, and it takes no more.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: TokenizerIdentity,
        split: Split = WHOLE,
        *,
        shard_samples: int = SHARD_SAMPLES,
    ) -> None:
        if shard_samples < 1:
            raise ValueError(f"TokensWriter: shard_samples must be at least 1, got {shard_samples}")
        self.folder, self.tokenizer = folder, tokenizer
        self.next_place = self.samples = self.skipped = 0
        self.complete = False
        self.is_whole = split.count == 1  # nobody else writes to the folder
        part = "" if self.is_whole else f".{split.index:05d}-of-{split.count:05d}"
        self._stem, self._shard_samples = f"tokens{part}", shard_samples
        self._index, self._run = folder / index_name(split), folder / f"{self._stem}.run.json"
        self._about: dict[str, Any] = {}
        self._shards: list[dict[str, Any]] = []
        self._kinds = dict.fromkeys(KINDS, 0)
        self._waiting: list[dict[str, Any]] = []  # samples in the journal
        self._journal: Journal | None = None
        self._lock: OutputLock | None = None

    def leftovers(self) -> list[Path]:
        """Return the files of an earlier run, in the order in which to delete them: a kill must not leave a store."""
        if not self.folder.is_dir():
            return [self.folder] if self.folder.exists() else []
        ours = re.compile(re.escape(self._stem) + r"\.\d{5}\.(safetensors|partial)")
        names = sorted(filter(ours.fullmatch, os.listdir(self.folder)), reverse=True)
        files = [self._index, *(self.folder / name for name in names), self._run]
        return [path for path in files if path.exists()]

    def open(self, run: dict[str, Any], *, resume: bool, overwrite: bool = True) -> None:
        """Prepare for writing; without `resume` whatever an earlier run has left is dropped.

        Args:
            run: description of everything on which the samples depend; a resumed run must have the same.
            overwrite: False: files of another run are an error (without `resume`), and stay.

        Raises:
            OutputError: the folder belongs to another run, or another process writes it; nothing is changed.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputError(f"{self.folder}: must be a folder, got a file")
        self._about = run = {"tokenizer": str(self.tokenizer), **run}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = OutputLock(self.folder / f".{self._stem}.lock", self.folder)  # before anything is deleted
        try:
            self._open(run, resume, overwrite)
        except (OutputError, StoreError):
            self.close()
            raise
        if self.complete:
            self.close()

    def _open(self, run: dict[str, Any], resume: bool, overwrite: bool) -> None:
        if not resume:
            before = self.leftovers()
            if before and not overwrite:
                raise left_meanwhile(self.folder)
            for path in before:
                path.unlink()
        elif self._run.exists():
            check_run(self._run, run, self.folder)
        elif self._index.exists():
            self.complete = True
            index = read_index(self._index)
            if index["run"] != run:
                raise OtherRun(f"{self.folder}: made by another run: {index['run']}")
            self.samples, self.skipped = index["samples"], index["skipped"]
            return
        while self._file(".safetensors").exists():
            # Its journal is still there if a kill came between the shard and the end of the journal.
            self._file(".partial").unlink(missing_ok=True)
            self._take_shard(Shard(self._file(".safetensors")))
        self._journal = Journal(self._file(".partial"))
        self._read_journal()
        write_run(self._run, run)

    def append(self, samples: Sequence[dict[str, Any]], *, next_place: int, skipped: int = 0) -> list[str]:
        """Record a block of samples: all of it or, after a kill, nothing.

        Args:
            samples: dicts as in `seed_fast.data.tokens.samples`; one that can't be stored is left out and counted.
            next_place: place in the input of the item after the block.
            skipped: number of inputs in the block that gave no sample.

        Returns:
            One line for each sample that can't be stored.
        """
        rows, problems = [], []
        for sample in samples:
            try:
                rows.append(self._row(sample))
            except SampleProblem as error:
                problems.append(f"{sample.get('key', '')}: {error}")
        block = {"next": next_place, "skipped": skipped + len(problems), "samples": rows}
        opened(self._journal).write((json.dumps(block, separators=(",", ":")) + "\n").encode())
        self._take_block(block)
        if len(self._waiting) >= self._shard_samples:
            self._pack()
            self._journal = Journal(self._file(".partial"))
        return problems

    def finish(self) -> None:
        """Write the last shard and the index."""
        if self.complete:
            return
        if self._waiting:
            self._pack()
        else:
            opened(self._journal).remove()
        write_beside(self._index, index_bytes(self.tokenizer, self._shards, self._kinds, self.skipped, self._about))
        self._run.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close all files, and leave everything for a resumed run."""
        if self._journal is not None:
            self._journal.close()
        if self._lock is not None:
            self._lock.release()

    def _digest(self) -> str:
        return hashlib.blake2b(json.dumps(self._about, sort_keys=True).encode(), digest_size=16).hexdigest()

    def _row(self, sample: dict[str, Any]) -> dict[str, Any]:
        limits = {"codebook_size": self.tokenizer.codebook_size, "codes_per_image": self.tokenizer.codes_per_image}
        parts = check_parts(to_parts(sample), **limits)
        return {"kind": sample["kind"], "key": str(sample.get("key", "")), "parts": parts}

    def _file(self, suffix: str) -> Path:
        return self.folder / f"{self._stem}.{len(self._shards):05d}{suffix}"

    def _read_journal(self) -> None:
        path = self._file(".partial")
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    self._take_block(parse_json(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise OutputError(f"{path}: line {number} must be a block of samples, got: {error!r}") from None

    def _take_block(self, block: dict[str, Any]) -> None:
        self._waiting += block["samples"]
        self.samples += len(block["samples"])
        self.skipped += block["skipped"]
        self.next_place = block["next"]

    def _take_shard(self, shard: Shard) -> None:
        about = shard.about
        if about.get("run") != self._digest():
            raise OtherRun(f"{shard.path}: made by another run")
        self.samples += len(shard)
        self.skipped, self.next_place = int(about["skipped"]), int(about["next"])
        for kind, count in parse_json(about["kinds"]).items():
            self._kinds[kind] += count
        self._shards.append({"file": shard.path.name, "samples": len(shard), "images": len(shard.arrays["codes"])})

    def _pack(self) -> None:
        """Turn the journal into the next shard."""
        journal = opened(self._journal)
        journal.sync()
        journal.close()
        kinds = {kind: sum(sample["kind"] == kind for sample in self._waiting) for kind in KINDS}
        about = {"run": self._digest(), "kinds": json.dumps(kinds)}
        about |= {"next": str(self.next_place), "skipped": str(self.skipped)}
        path = self._file(".safetensors")
        write_beside(path, shard_bytes(self._waiting, self.tokenizer, about))
        journal.path.unlink()
        images = sum(not isinstance(part, str) for sample in self._waiting for part in sample["parts"])
        self._shards.append({"file": path.name, "samples": len(self._waiting), "images": images})
        self._kinds = {kind: self._kinds[kind] + count for kind, count in kinds.items()}
        self._waiting = []
