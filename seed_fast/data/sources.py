"""Data sets of pictures and captions as numbered samples, opened by the one line of text that names them.

`open_source` says which forms there are; `docs/data.md` shows each.
"""

from __future__ import annotations

import glob
import json
import logging
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np

from seed_fast.data import shapes
from seed_fast.data.lists import LIST_SUFFIXES, DataError, Record, merged, read_list
from seed_fast.data.samples import FileSample, Sample, ShapesSample
from seed_fast.data.shards import IMAGE_SUFFIXES, SHARD_SUFFIXES, Entry, ShardError, walk
from seed_fast.data.tar_pairs import ShardsSource

# Files that list the captions of a folder.
CAPTION_FILES = ("captions.jsonl", "captions.tsv", "captions.json", "metadata.jsonl")
log = logging.getLogger("seed_fast.data")
SPLITS = ("train", "val", "test")


class Source(Protocol):
    """Samples numbered from 0."""

    @property
    def groups(self) -> list[int]:
        """Number of samples in each shard; one group if there are no shards."""

    @property
    def window(self) -> int | None:
        """See `EpochOrder`."""

    def __len__(self) -> int: ...

    def sample(self, number: int, epoch: int) -> Sample:
        """Return the sample with this number in this epoch."""


def open_source(spec: str, *, split: str = "train", image_root: str | os.PathLike[str] | None = None) -> Source:
    """Open a data set.

    Args:
        spec: `shapes:COUNT[,seed=N][,fresh][,family=N]`; a tar shard, a brace list or a glob of them; a folder of
            images with a captions file, with a `.txt` beside each image, or of tar shards; a list as `.jsonl`, `.tsv`
            or `.json`.
        split: "train", "val" or "test". Tells the parts of `shapes` and of a Karpathy file; other data has none.
        image_root: folder to which the relative paths of a list belong. Default: the folder of the list.

    Raises:
        ValueError: there is no such data, or nothing in it can be used. The message starts with its name.
    """
    if split not in SPLITS:
        raise ValueError(f"open_source: split must be one of {', '.join(SPLITS)}, got {split!r}")
    if spec.partition(":")[0] == "shapes":
        return _shapes(spec, split)
    path = Path(spec)
    if path.is_dir():
        return _folder(path, split, image_root)
    if path.is_file() and path.suffix in LIST_SUFFIXES:
        return _list(path, split, image_root)
    if spec.lower().endswith(SHARD_SUFFIXES):
        return ShardsSource(expanded(spec))
    if not path.exists():
        raise DataError(f"{spec}: no such file or folder")
    raise DataError(f"{spec}: expected a folder, tar shards, a list ({', '.join(LIST_SUFFIXES)}) or shapes:COUNT")


class ListSource:
    """Samples that are files, held as one block of bytes: millions of strings would take several times as much."""

    window = None

    def __init__(self, root: Path, records: Iterable[Record], text_beside: bool = False) -> None:
        self._root = root
        self._text_beside = text_beside
        lines = [json.dumps(record).encode() for record in records]
        self._ends = np.cumsum([len(line) for line in lines], dtype=np.int64)
        self._lines = b"".join(lines)
        self.groups = [len(lines)]

    def __len__(self) -> int:
        return len(self._ends)

    def sample(self, number: int, epoch: int) -> FileSample:
        """Return the sample with this number, the same in every epoch."""
        begin = int(self._ends[number - 1]) if number else 0
        image, captions, problem = json.loads(self._lines[begin : int(self._ends[number])])
        path = os.path.join(self._root, image)
        text = None
        if self._text_beside:
            text_path = os.path.splitext(path)[0] + ".txt"
            text = Entry(text_path, text_path)
        return FileSample(image if problem else path, Entry(path, path), tuple(captions), text, problem)


class ShapesSource:
    """Generated scenes; no two of "val" or of "test" have the same caption.

    Siblings stay side by side in every order, so that a batch holds whole families.
    """

    def __init__(self, count: int, seed: int, split: str, fresh: bool, family: int) -> None:
        self.groups = [count] if family == 1 else [family] * (count // family)
        self.window = None if family == 1 else family
        self._count = count
        self._seed, self._split, self._fresh, self._family = seed, split, fresh, family
        self._indexes = range(count) if split == "train" else shapes.distinct(seed, count, split)

    def __len__(self) -> int:
        return self._count

    def sample(self, number: int, epoch: int) -> ShapesSample:
        """Return the scene with this number; if scenes are fresh, another one in every epoch."""
        index = epoch * len(self) + number if self._fresh else self._indexes[number]
        return ShapesSample(self._seed, index, self._split, self._family)


def _shapes(spec: str, split: str) -> ShapesSource:
    count, *options = spec.partition(":")[2].split(",")
    seed, fresh, family = 0, False, 1
    try:
        for option in options:
            if option == "fresh" and split == "train":
                fresh = True
            elif option.startswith("seed="):
                seed = int(option[len("seed=") :])
            elif option.startswith("family=") and split == "train":
                family = int(option[len("family=") :])
            else:
                raise ValueError(option)
        if int(count) < 1 or family < 1 or int(count) % family:
            raise ValueError(count)
        return ShapesSource(int(count), seed, split, fresh, family)
    except ValueError as error:
        if str(error).startswith("shapes:"):
            raise
        form = "shapes:COUNT[,seed=N][,fresh][,family=N], COUNT at least 1 and a multiple of N; fresh, family: to train"
        raise DataError(f"{spec}: expected {form}") from None


def _folder(path: Path, split: str, image_root: str | os.PathLike[str] | None) -> Source:
    # A list of captions decides; without one, look at the files.
    lists = [path / name for name in CAPTION_FILES if (path / name).is_file()]
    if len(lists) > 1:
        raise DataError(f"{path}: expected one captions file, got {' and '.join(each.name for each in lists)}")
    if lists:
        return _list(lists[0], split, image_root)
    images, texts, tars = [], 0, []
    problems: list[str] = []  # PATH: reason
    for file in walk(str(path), (*IMAGE_SUFFIXES, *SHARD_SUFFIXES, ".txt"), problems.append):
        if file.lower().endswith(IMAGE_SUFFIXES):
            images.append(os.path.relpath(file, path))
        elif file.lower().endswith(SHARD_SUFFIXES):
            tars.append(file)
        else:
            texts += 1
    # Images with a .txt beside each, or tar shards, or nothing that can be used.
    if images and texts:
        unusable = (Record(line.partition(": ")[0], (), line.partition(": ")[2]) for line in problems)
        return ListSource(path, chain((Record(image, (), None) for image in images), unusable), text_beside=True)
    if tars and not images:
        for line in problems:
            log.warning("bad input: %s", line)
        return ShardsSource(tars)
    if problems:
        raise DataError(problems[0])
    raise DataError(
        f"{path}: expected tar shards, or images with {', '.join(CAPTION_FILES[:-1])} or a .txt beside each; "
        f"got {len(images)} images, {texts} .txt files and {len(tars)} shards"
    )


def _list(path: Path, split: str, image_root: str | os.PathLike[str] | None) -> ListSource:
    records = list(merged(read_list(path, split)))
    if all(record.problem for record in records):
        why = f": {records[0].image}: {records[0].problem}" if records else f" for the split {split!r}"
        raise DataError(f"{path}: no usable entry{why}")
    return ListSource(path.parent if image_root is None else Path(image_root), records)


def expanded(spec: str) -> list[str]:
    """Return the shards that a brace list or a glob names. A name that exists is taken literally.

    Raises:
        ValueError: a glob matches nothing, or the braces are no list.
    """
    if os.path.lexists(spec):
        return [spec]
    from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

    try:
        parts = list(braceexpand(spec))
    except UnbalancedBracesError as error:
        raise DataError(f"{spec}: {error}") from None
    paths = []
    for part in parts:
        matches = sorted(glob.glob(part, recursive=True)) if glob.has_magic(part) else [part]
        if not matches:
            raise ShardError(f"{part}: no shard matches")
        paths += matches
    return paths
