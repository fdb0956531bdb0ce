"""A disk cache of what frozen parts compute, so that each sample is computed only once.

Stage 1 caches the ViT's output [L, E], stage 2 the causal embeddings [N, C]. Rows are stored by the sample's key, so
images must be the same in every epoch: no augmentation. Each rank appends to files of its own and reads those of all. A
row is valid once its key is written, so a kill leaves no half row. Several runs may fill one folder at the same time.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from seed_fast._files import OutputError, open_locked, write_beside, writing
from seed_fast.train.batches import Batch

ABOUT = "about.json"


@dataclass
class _Part:
    """The files of one rank, and how many bytes and how many keys have been read."""

    rows: Path
    keys: Path
    read: int = 0
    count: int = 0


class FeatureCache:
    """A callable that maps a batch to its features [B, *shape], read from disk where they are cached.

    Args:
        folder: is created if it doesn't exist.
        compute: batch -> features [B, *shape]; called for whole batches, so that rounding doesn't depend on which
            samples are cached already.
        shape: shape of one sample's features.
        dtype: type in which they are stored and returned.
        about: what else the features depend on, such as the `checksum` of the weights; a cache that was made
            with other values is refused.
        rank: number of this process.

    Raises:
        ValueError: the folder holds features of other weights, sizes or types.
    """

    def __init__(
        self,
        folder: Path,
        compute: Callable[[Batch], Tensor],
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        about: dict[str, Any],
        rank: int = 0,
    ) -> None:
        self.folder, self._compute, self._shape, self._dtype = folder, compute, shape, dtype
        self.row_bytes = torch.Size(shape).numel() * dtype.itemsize
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {"shape": list(shape), "dtype": str(dtype).removeprefix("torch."), **about}
        path = folder / ABOUT
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            for name in wanted:
                if stored.get(name) != wanted[name]:
                    raise ValueError(
                        f"{folder}: holds features with {name} {stored.get(name)!r}, this run needs {wanted[name]!r}: "
                        "give another folder"
                    )
        elif rank == 0:
            write_beside(path, json.dumps(wanted).encode())
        self._parts: dict[str, _Part] = {}
        self._index: dict[str, tuple[Path, int]] = {}
        self._own, lock = self._free_part(f"rank-{rank:05d}")
        self.close = weakref.finalize(self, lock.close)  # gives the files free for another run
        self._repair()
        self._refresh()

    @property
    def count(self) -> int:
        """Number of cached samples."""
        return len(self._index)

    def check_space(self, samples: int) -> str:
        """Return a line that says how much space the cache of so many samples takes.

        Raises:
            ValueError: the disk has less space.
        """
        total = samples * self.row_bytes
        needed, free = max(0, samples - self.count) * self.row_bytes, shutil.disk_usage(self.folder).free
        text = f"{samples} samples x {self.row_bytes / 1e6:.3g} MB = {total / 1e9:.3g} GB in {self.folder}"
        if needed > free:
            raise ValueError(f"cached features: {text}, and the disk has {free / 1e9:.3g} GB free")
        return f"cached features: {text}, {self.count} there already; {free / 1e9:.3g} GB free"

    def __call__(self, batch: Batch) -> Tensor:
        """Return the features [B, *shape] of a batch, on the device of its pixels."""
        keys = batch["keys"]
        if any(key not in self._index for key in keys):
            self._refresh()  # another rank may have cached it meanwhile
        missing = [number for number, key in enumerate(keys) if key not in self._index]
        if missing:
            with torch.no_grad():
                fresh = self._compute(batch).detach().to(self._dtype).cpu()
            if fresh.shape != (len(keys), *self._shape):
                raise ValueError(
                    f"{self.folder}: features must be {[len(keys), *self._shape]}, got {list(fresh.shape)}"
                )
            self._append([keys[number] for number in missing], fresh[missing])
        rows = torch.stack([self._row(key) for key in keys])
        return rows.to(batch["pixels"].device)

    def _part(self, name: str) -> _Part:
        return self._parts.setdefault(name, _Part(self.folder / f"{name}.rows", self.folder / f"{name}.keys"))

    def _free_part(self, name: str) -> tuple[_Part, BinaryIO]:
        """Return files that only this process writes, and the lock that keeps others away while it is open."""
        for number in itertools.count():
            part = self._part(f"{name}-{number}" if number else name)
            try:
                return part, open_locked(part.keys)
            except OutputError:  # another run fills the same folder
                continue
        raise AssertionError  # not reached

    def _repair(self) -> None:
        """Cut off what a killed run left incomplete: a key without its end of line, rows without a key."""
        part = self._own
        part.rows.touch()
        part.keys.touch()
        keys = part.keys.read_bytes()
        whole = keys[: keys.rfind(b"\n") + 1]
        lines = whole.splitlines(keepends=True)[: part.rows.stat().st_size // self.row_bytes]
        os.truncate(part.keys, sum(map(len, lines)))
        os.truncate(part.rows, len(lines) * self.row_bytes)

    def _refresh(self) -> None:
        """Read the keys that any rank has written since the last call."""
        for path in self.folder.glob("rank-*.keys"):
            part = self._part(path.stem)
            with open(path, "rb") as file:
                file.seek(part.read)
                content = file.read()
            content = content[: content.rfind(b"\n") + 1]
            part.read += len(content)
            for line in content.splitlines():
                self._index.setdefault(json.loads(line), (part.rows, part.count))
                part.count += 1

    def _append(self, keys: list[str], rows: Tensor) -> None:
        """Write rows, then their keys, which make them valid."""
        lines = {key: row for key, row in zip(keys, rows, strict=True)}  # noqa: C416 (a key twice is one row)
        with writing(self._own.rows), open(self._own.rows, "ab") as file:
            file.write(torch.stack(list(lines.values())).contiguous().reshape(-1).view(torch.uint8).numpy().data)
        with writing(self._own.keys), open(self._own.keys, "ab") as file:
            file.write("".join(json.dumps(key) + "\n" for key in lines).encode())
        self._refresh()

    def _row(self, key: str) -> Tensor:
        """Read the features of one sample."""
        path, number = self._index[key]
        with open(path, "rb") as file:
            file.seek(number * self.row_bytes)
            content = bytearray(file.read(self.row_bytes))
        return torch.frombuffer(content, dtype=self._dtype).reshape(self._shape)
