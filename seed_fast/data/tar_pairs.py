"""WebDataset shards as a data set with random access: each shard is read through once, and its index is kept.

Members that share a name up to the first dot are a sample, as in WebDataset: `0001.jpg` with `0001.txt` or `0001.json`,
one after the other; `0001.mask.png` beside them is a field that nothing here reads. Where names have more dots, such as
`img_0.5.jpg` and `img_0.5.txt`, members that share a name up to the last dot are a sample, as in a folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from seed_fast import _env
from seed_fast._files import replacing
from seed_fast._text import name_bytes
from seed_fast.data.samples import FileSample
from seed_fast.data.shards import IMAGE_SUFFIXES, Entry, ShardError, compression_of, shard_members

TEXT_SUFFIXES = (".txt", ".json")
_FIELDS = ("image_offset", "image_size", "text_offset", "text_size")  # bytes
_MISSING, _UNUSABLE = -1, -2  # offsets: there is no such member; it is a link, or sparse
_VERSION = 2  # version of the index in the cache


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
        path, key = self.paths[shard], f"{self.paths[shard]}/{_name(row['name'])}"
        if _UNUSABLE in (row["image_offset"], row["text_offset"]):
            return FileSample(key, None, problem="its member is a link or sparse (use tar -h, not -S)")
        image = _entry(row, "image", path, key + _name(row["image_suffix"]))
        text = _entry(row, "text", path, key + (".json" if row["text_is_json"] else ".txt"))
        return FileSample(key, image, text=text)


def _name(stored: bytes) -> str:
    return stored.decode("utf-8", "surrogatepass")


def _entry(row: np.void, kind: str, path: str, name: str) -> Entry | None:
    offset = int(row[f"{kind}_offset"])
    return None if offset == _MISSING else Entry(name, path, offset, int(row[f"{kind}_size"]))


def _index(path: str) -> np.ndarray:
    """Return one row per sample of a shard, from the cache if the shard has not changed since it was indexed."""
    try:
        status = os.stat(path)
        compressed = compression_of(path) is not None
    except FileNotFoundError:
        raise ShardError(f"{path}: no such shard") from None
    except OSError as error:
        raise ShardError(f"{path}: cannot be read: {error.strerror or error}") from error
    if compressed:
        raise ShardError(
            f"{path}: a compressed shard can't be read at random: decompress it to a plain .tar for training"
        )
    identity = f"{_VERSION}|{os.path.abspath(path)}|{status.st_size}|{status.st_mtime_ns}"
    kept = _cache_folder() / f"{hashlib.blake2b(name_bytes(identity), digest_size=16).hexdigest()}.npy"
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
    names, suffixes = (max(len(row[column]) for row in rows) for column in (0, 1))
    numbers = [(field, np.int64) for field in _FIELDS]
    first = [("name", f"S{names}"), ("image_suffix", f"S{max(1, suffixes)}"), ("text_is_json", np.bool_)]
    return np.array(rows, dtype=[*first, *numbers])


def _rows(path: str) -> Iterator[tuple]:
    """Yield the row of each sample: name, suffix of the image, whether the text is JSON, and four numbers."""
    group: str | None = None  # the name up to its first dot
    found: dict[str, dict[str, Entry]] = {}  # members of the group, by the name up to its last dot and by suffix
    for member in shard_members(path, IMAGE_SUFFIXES + TEXT_SUFFIXES):
        name = member.path[len(path) + 1 :]
        folder, base = os.path.split(name)
        stem, suffix = os.path.splitext(name)
        this = os.path.join(folder, base.partition(".")[0])
        if group is not None and this != group:
            yield from _samples(group, found)
            found = {}
        group = this
        suffix = suffix.lower()
        found.setdefault(stem, {}).setdefault(suffix if suffix in TEXT_SUFFIXES else "image", member)
    if group is not None:
        yield from _samples(group, found)


def _samples(group: str, found: dict[str, dict[str, Entry]]) -> Iterator[tuple]:
    """Yield the rows of the samples among members that share a name up to the first dot."""
    has_image = "image" in found.get(group, {})
    for stem, members in found.items():
        is_pair = "image" in members and len(members) > 1
        if stem == group or is_pair or (not has_image and "image" in members):
            yield _row(stem, members)


def _row(name: str, found: dict[str, Entry]) -> tuple:
    image = found.get("image")
    numbers: list[int] = []
    for member in (image, found.get(".txt") or found.get(".json")):
        if member is None:
            numbers += [_MISSING, 0]
        elif member.problem is not None or member.data is not None:
            numbers += [_UNUSABLE, 0]
        else:
            numbers += [member.offset, member.size or 0]
    suffix = "" if image is None else os.path.splitext(image.path)[1]
    return (name_bytes(name), name_bytes(suffix), ".txt" not in found, *numbers)


def _cache_folder() -> Path:
    return Path(_env.get("SEED_FAST_CACHE")).expanduser() / "shards"


def _keep(path: Path, index: np.ndarray) -> None:
    """Keep an index for the next run; several ranks may write the same one at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.save(file, index, allow_pickle=False)
    except OSError:  # a read-only or full disk: the next run reads the shard again
        return
