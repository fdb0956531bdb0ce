"""WebDataset shards as a data set with random access: each shard is read through once, and its index is kept.

A sample is what shares a name up to the first dot: `0001.jpg` with `0001.txt` or `0001.json`, one after the other.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from seed_fast import _env
from seed_fast.data.samples import FileSample
from seed_fast.data.shards import IMAGE_SUFFIXES, Entry, ShardError, shard_members

TEXT_SUFFIXES = (".txt", ".json")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
_FIELDS = ("image_offset", "image_size", "text_offset", "text_size")  # bytes; an offset of -1: not there
_VERSION = 1  # of the kept index


class ShardsSource:
    """The samples of tar shards.

    Args:
        paths: the shards, in the order of their numbers.

    Raises:
        ShardError: one is missing, torn, compressed (a compressed shard can't be read at random) or without a sample.
    """

    window = 16_384  # samples that are shuffled with each other: about two shards at a time are open to reading

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths
        self._indexes = [_index(path) for path in paths]
        self.groups = [len(index) for index in self._indexes]
        self._ends = np.cumsum(self.groups)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def sample(self, number: int, epoch: int) -> FileSample:
        """The sample with this number, the same in every epoch."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        row = self._indexes[shard][number - self._ends[shard]]  # a negative index: from the shard's end
        path, name = self.paths[shard], row["name"].decode()
        key = f"{path}/{name}"
        image = _entry(row, "image", path, key)
        text = _entry(row, "text", path, key + (".json" if row["text_is_json"] else ".txt"))
        return FileSample(key, image, text=text)


def _entry(row: np.void, kind: str, path: str, name: str) -> Entry | None:
    offset = int(row[f"{kind}_offset"])
    return None if offset < 0 else Entry(name, path, offset, int(row[f"{kind}_size"]))


def _index(path: str) -> np.ndarray:
    """One row per sample, from the cache if the shard is as it was when it was read."""
    try:
        status = os.stat(path)
        with open(path, "rb") as file:
            compressed = file.read(6).startswith(_COMPRESSED)
    except FileNotFoundError:
        raise ShardError(f"{path}: no such shard") from None
    except OSError as error:
        raise ShardError(f"{path}: cannot be read: {error.strerror or error}") from error
    if compressed:
        raise ShardError(
            f"{path}: a compressed shard can't be read at random: decompress it to a plain .tar for training"
        )
    identity = f"{_VERSION}|{os.path.abspath(path)}|{status.st_size}|{status.st_mtime_ns}"
    kept = _cache_folder() / f"{hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()}.npy"
    try:
        return np.load(kept, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there yet, or damaged: it is made again
        index = _scan(path)
    _keep(kept, index)
    return index


def _scan(path: str) -> np.ndarray:
    rows = list(_rows(path))
    if not rows:
        raise ShardError(f"{path}: the shard holds no image and no caption")
    longest = max(len(row[0]) for row in rows)
    numbers = [(field, np.int64) for field in _FIELDS]
    return np.array(rows, dtype=[("name", f"S{longest}"), ("text_is_json", np.bool_), *numbers])


def _rows(path: str) -> Iterator[tuple]:
    """Name, whether the text is JSON, and the four numbers of each sample."""
    name: str | None = None
    found: dict[str, Entry] = {}
    for member in shard_members(path, IMAGE_SUFFIXES + TEXT_SUFFIXES):
        folder, base = os.path.split(member.path[len(path) + 1 :])
        stem, _, suffix = base.partition(".")
        suffix = "." + suffix.lower()
        if suffix not in IMAGE_SUFFIXES + TEXT_SUFFIXES:  # such as "0001.mask.png"
            continue
        stem = os.path.join(folder, stem)
        if name is not None and stem != name:
            yield _row(name, found)
            found = {}
        name = stem
        found.setdefault(suffix if suffix in TEXT_SUFFIXES else "image", member)
    if name is not None:
        yield _row(name, found)


def _row(name: str, found: dict[str, Entry]) -> tuple:
    text = found.get(".txt") or found.get(".json")
    numbers: list[int] = []
    for member in (found.get("image"), text):
        numbers += [-1, 0] if member is None else [member.offset, member.size]
    return (name.encode("utf-8", "surrogateescape"), ".txt" not in found, *numbers)


def _cache_folder() -> Path:
    return Path(_env.get("SEED_FAST_CACHE")).expanduser() / "shards"


def _keep(path: Path, index: np.ndarray) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # ranks may write the same index at once
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            np.save(file, index, allow_pickle=False)
        os.replace(beside, path)
    except OSError:  # a read-only or full disk: the next run reads the shard again
        if beside.exists():
            beside.unlink()
