"""Features of frozen parts, computed once per sample and read from disk ever after.

Stage 1 caches the ViT's output [L, E], stage 2 the causal embeddings [N, C]. Rows are kept by the sample's key, so
pictures must look the same in every epoch: no augmentation. Each rank appends to files of its own and reads all; a row
counts once its key is written, so a kill leaves nothing half. Several runs may fill a folder at a time.
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
    """The files of one rank, and how much of its keys has been read."""

    rows: Path
    keys: Path
    read: int = 0
    count: int = 0


class FeatureCache:
    """Called with a batch, gives its features [B, *shape], from disk where they are there.

    Args:
        folder: made if it isn't there.
        compute: batch -> features [B, *shape]; called for whole batches, so that rounding doesn't depend on what is
            there already.
        shape: of one sample's features.
        dtype: in which they are stored and given back.
        about: what else they depend on, such as the `checksum` of the weights; a cache made with another is refused.
        rank: of this process.

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
        self.folder, self._compute, self._shape, self._dtype, self._rank = folder, compute, shape, dtype, rank
        self.row_bytes = torch.Size(shape).numel() * dtype.itemsize
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {"shape": list(shape), "dtype": str(dtype).removeprefix("torch."), **about}
        path = folder / ABOUT
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            for name in wanted:
                if found.get(name) != wanted[name]:
                    raise ValueError(
                        f"{folder}: holds features with {name} {found.get(name)!r}, this run needs {wanted[name]!r}: "
                        "give another folder"
                    )
        elif rank == 0:
            write_beside(path, json.dumps(wanted).encode())
        self._parts: dict[str, _Part] = {}
        self._index: dict[str, tuple[Path, int]] = {}
        self._own, lock = self._free_part(f"rank-{rank:05d}")
        self.close = weakref.finalize(self, lock.close)  # let another run have the files of this one
        self._repair()
        self._refresh()

    @property
    def count(self) -> int:
        """Samples there."""
        return len(self._index)

    def check_space(self, samples: int) -> str:
        """Say what the cache will take for so many samples.

        Raises:
            ValueError: the disk has less.
        """
        total = samples * self.row_bytes
        needed, free = max(0, samples - self.count) * self.row_bytes, shutil.disk_usage(self.folder).free
        text = f"{samples} samples x {self.row_bytes / 1e6:.3g} MB = {total / 1e9:.3g} GB in {self.folder}"
        if needed > free:
            raise ValueError(f"cached features: {text}, and the disk has {free / 1e9:.3g} GB free")
        return f"cached features: {text}, {self.count} there already; {free / 1e9:.3g} GB free"

    def __call__(self, batch: Batch) -> Tensor:
        """Features [B, *shape] on the device of the pixels."""
        keys = batch["keys"]
        if any(key not in self._index for key in keys):
            self._refresh()  # another rank may have had it
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
        """Files that this process alone writes, and what keeps others from them as long as it is open."""
        for number in itertools.count():
            part = self._part(f"{name}-{number}" if number else name)
            try:
                return part, open_locked(part.keys)
            except OutputError:  # another run fills the same folder
                continue
        raise AssertionError  # not reached

    def _repair(self) -> None:
        """Cut off what a kill left half: a key without its end of line, rows without a key."""
        part = self._own
        part.rows.touch()
        part.keys.touch()
        keys = part.keys.read_bytes()
        whole = keys[: keys.rfind(b"\n") + 1]
        lines = whole.splitlines(keepends=True)[: part.rows.stat().st_size // self.row_bytes]
        os.truncate(part.keys, sum(map(len, lines)))
        os.truncate(part.rows, len(lines) * self.row_bytes)

    def _refresh(self) -> None:
        """Read the keys that came since the last time, of all ranks."""
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
        lines = {key: row for key, row in zip(keys, rows, strict=True)}  # noqa: C416 (a key twice is one row)
        with writing(self._own.rows), open(self._own.rows, "ab") as file:
            file.write(torch.stack(list(lines.values())).contiguous().reshape(-1).view(torch.uint8).numpy().data)
        with writing(self._own.keys), open(self._own.keys, "ab") as file:
            file.write("".join(json.dumps(key) + "\n" for key in lines).encode())
        self._refresh()

    def _row(self, key: str) -> Tensor:
        path, number = self._index[key]
        with open(path, "rb") as file:
            file.seek(number * self.row_bytes)
            content = bytearray(file.read(self.row_bytes))
        return torch.frombuffer(content, dtype=self._dtype).reshape(self._shape)
