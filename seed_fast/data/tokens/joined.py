"""Joining codes that `seed-fast tokenize` wrote with the captions of a data set, by the path of the picture."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from seed_fast._text import name_bytes, parse_json, read_lines, shown
from seed_fast.data.image_processor import ImageError
from seed_fast.data.journal import OutputError
from seed_fast.data.samples import FileSample, SampleError
from seed_fast.data.shards import IMAGE_SUFFIXES, WHOLE, Split
from seed_fast.data.sources import Source, expanded
from seed_fast.data.tokens.record import Item, Items


class CaptionsByPath:
    """The captions of a source, looked up by the path of their picture. Holds 16 bytes per picture.

    Args:
        source: a data set of files; a generated world has no paths.

    Raises:
        ValueError: the source is a generated world.
    """

    def __init__(self, source: Source) -> None:
        if len(source) and not isinstance(source.sample(0, 0), FileSample):
            raise ValueError("captions: must be a list, a folder or shards, got a generated world: use `tokens build`")
        self._source = source
        hashes = np.fromiter((_hash(_path(self._sample(number))) for number in range(len(source))), dtype=np.uint64)
        self._numbers = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._numbers]

    def __getitem__(self, path: str) -> tuple[str, ...]:
        """Return the captions of a picture.

        Args:
            path: path as `seed-fast tokenize` writes it: that of a file, or of a shard and its member.

        Raises:
            KeyError: the source has no such picture.
            ImageError, SampleError: the captions can't be used.
        """
        name = _stem(os.path.abspath(path))
        hashed = _hash(name)
        at = int(np.searchsorted(self._hashes, hashed))
        while at < len(self._hashes) and self._hashes[at] == hashed:
            sample = self._sample(int(self._numbers[at]))
            if _path(sample) == name:
                return sample.read_captions()
            at += 1
        raise KeyError(path)

    def _sample(self, number: int) -> FileSample:
        return self._source.sample(number, 0)  # type: ignore[return-value]


def joined_items(
    inputs: Iterable[str],
    captions: CaptionsByPath,
    on_problem: Callable[[str], None],
    *,
    start: int = 0,
    split: Split = WHOLE,
) -> Items:
    """Yield an item for every picture in outputs of `seed-fast tokenize`, in order.

    Args:
        inputs: `.jsonl` files, folders of `.npz` parts, globs and brace lists.
        captions: the captions of these pictures.
        on_problem: called with one line for each input that is missing or damaged.
        start: number of pictures to pass over.
        split: part of the pictures that belongs to this process.
    """
    place = 0
    for path in _files(inputs, on_problem):
        try:
            for name, codes in _read(path):
                if place >= start and place % split.count == split.index:
                    yield Item(place, None, name) if codes is None else _item(place, name, codes, captions)
                place += 1
        except (OutputError, OSError) as error:
            on_problem(str(error))


def _item(place: int, name: str, codes: list[int], captions: CaptionsByPath) -> Item:
    try:
        texts = captions[name]
    except KeyError:
        return Item(place, None, f"{name}: no caption belongs to this picture")
    except (ImageError, SampleError) as error:
        return Item(place, None, str(error))
    return Item(place, {"kind": "caption", "key": name, "codes": codes, "text": texts[0], "texts": texts}, None)


def _files(inputs: Iterable[str], on_problem: Callable[[str], None]) -> Iterator[Path]:
    for spec in inputs:
        if os.path.isdir(spec):
            parts = sorted(path for path in Path(spec).iterdir() if path.suffix in (".npz", ".jsonl"))
            if not parts:
                on_problem(f"{spec}: no .npz part and no .jsonl file is in this folder")
            yield from parts
            continue
        try:
            yield from map(Path, expanded(spec))
        except ValueError as error:
            on_problem(str(error))


def _read(path: Path) -> Iterator[tuple[str, list[int] | None]]:
    """Yield (path, codes) of each picture; (what is wrong, None) for a damaged line."""
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as part:
                names, codes = part["paths"].tolist(), part["codes"].tolist()
        except Exception as error:  # damaged archives make numpy raise many kinds
            raise OutputError(f"{path}: must be a part written by seed-fast, got: {error}") from error
        yield from zip(names, codes, strict=True)
        return
    try:
        for number, line in read_lines(path):
            try:
                record = parse_json(line)
                name, codes = record["path"], record["codes"]
                if not isinstance(name, str) or not isinstance(codes, list):
                    raise TypeError(f"path {shown(name)}")
            except (ValueError, KeyError, TypeError):
                yield f'{path}:{number}: expected {{"path", "codes"}}, got {shown(line)}', None
            else:
                yield name, codes
    except ValueError as error:
        raise OutputError(f"{path}: {error}") from None


def _path(sample: FileSample) -> str:
    return _stem(os.path.abspath(sample.image.path if sample.image is not None else sample.key))


def _stem(path: str) -> str:
    """Return a path without the suffix of an image, which an index of shards doesn't keep."""
    stem, suffix = os.path.splitext(path)
    return stem if suffix.lower() in IMAGE_SUFFIXES else path


def _hash(name: str) -> np.uint64:
    return np.frombuffer(hashlib.blake2b(name_bytes(name), digest_size=8).digest(), np.uint64)[0]
