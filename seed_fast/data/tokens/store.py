"""The format of a token store, and reading it: shards of codes and text behind an index, in constant memory.

docs/lm.md describes the files. A shard is a safetensors file, so anything that reads safetensors reads it; here it is
mapped into memory, and reading a sample touches its own pages alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from seed_fast import limits
from seed_fast._text import name_bytes, parse_json, read_json
from seed_fast.data.shards import WHOLE, Split
from seed_fast.data.tokens.identity import TokenizerIdentity
from seed_fast.data.tokens.samples import KINDS, from_parts

FORMAT, VERSION = "seed_fast tokens", 1
OPEN_SHARDS = 512  # mapped at a time
ARRAYS = ("kinds", "part_ends", "image_ends", "is_text", "codes", "text", "text_ends", "keys", "key_ends")


class StoreError(ValueError):
    """A token store that can't be used. The message starts with its path."""


def open_tokens(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> TokenStore:
    """Open a store, or several as one.

    Args:
        path: the folder that `seed-fast tokens` wrote, or a list of them.

    Raises:
        StoreError: there is no finished store, it is damaged, or two are of different tokenizers.

    Examples:
        store = open_tokens("captions/")
        sample = store[0]  # {"kind": "caption", "key": ..., "codes": uint16 [32], "text": ..., "texts": (...)}
    """
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    if not paths:
        raise StoreError("open_tokens: expected a folder, got an empty list")
    return TokenStore([index for folder in paths for index in _indexes(Path(folder))])


class TokenStore:
    """Samples numbered from 0, in the order in which they were stored; made by `open_tokens`.

    A sample is a dict; `seed_fast.data.tokens.samples` lists the fields of each kind. It is read on demand, and
    nothing is unpickled.

    `tokenizer` is the identity of the tokenizer that made the codes, `kinds` the number of samples of each kind,
    `skipped` the number of inputs that were left out when the store was made.
    """

    window = 1 << 18  # samples that training shuffles with each other: few enough for the system to keep in memory

    def __init__(self, indexes: list[tuple[Path, dict[str, Any]]]) -> None:
        self.tokenizer = _identity(*indexes[0])
        self.paths: list[Path] = []
        self.groups: list[int] = []
        self.kinds = dict.fromkeys(KINDS, 0)
        self.images = self.skipped = 0
        for path, index in indexes:
            other = _identity(path, index)
            if not self.tokenizer.is_same(other):
                raise StoreError(
                    f"{path}: codes of two tokenizers can't be mixed: expected {self.tokenizer}, as in "
                    f"{indexes[0][0]}, got {other}"
                )
            for shard in index["shards"]:
                self.paths.append(path.parent / shard["file"])
                self.groups.append(int(shard["samples"]))
                self.images += int(shard["images"])
            for kind, count in index["kinds"].items():
                self.kinds[kind] += int(count)
            self.skipped += int(index["skipped"])
        for shard_path in self.paths:
            if not shard_path.is_file():
                raise StoreError(f"{shard_path}: this shard of the store is missing")
        self._ends = np.cumsum(self.groups, dtype=np.int64)
        self._shard = lru_cache(maxsize=OPEN_SHARDS)(Shard)

    @property
    def codebook_size(self) -> int:
        """Size of the codebook: every code is below it."""
        return self.tokenizer.codebook_size

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Read a sample.

        Raises:
            IndexError: there is no sample with this number.
            StoreError: the shard is damaged.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"TokenStore: number must be in 0..{len(self) - 1}, got {number}")
        shard = int(np.searchsorted(self._ends, number, side="right"))
        opened = self._shard(self.paths[shard])
        if len(opened) != self.groups[shard]:
            raise StoreError(f"{opened.path}: expected {self.groups[shard]} samples by the index, got {len(opened)}")
        try:
            return opened[number - int(self._ends[shard]) + self.groups[shard]]
        except (IndexError, ValueError) as error:  # UnicodeDecodeError is one
            raise StoreError(f"{opened.path}: sample {number} is damaged: {error}") from error

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))

    def verify(self) -> None:
        """Read every sample.

        Raises:
            StoreError: a shard is damaged, or a code is not below `codebook_size`.
        """
        for sample in self:
            images = [sample["codes"]] if "codes" in sample else sample.get("images", sample.get("image_ids", ()))
            for codes in images:
                if codes is not None and codes.size and int(codes.max()) >= self.codebook_size:
                    raise StoreError(
                        f"sample {sample['key']!r}: a code must be below {self.codebook_size}, got {codes.max()}"
                    )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_shard"}  # files stay with a process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._shard = lru_cache(maxsize=OPEN_SHARDS)(Shard)


class Shard:
    """One file, mapped into memory: `arrays` by name, `about` what its writer noted.

    Raises:
        StoreError: the file is no shard, or is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            mapped = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
            length = int.from_bytes(mapped[:8].tobytes(), "little")
            header = parse_json(mapped[8 : 8 + length].tobytes())
            self.about: dict[str, str] = header.pop("__metadata__")
            self.arrays = {name: _array(mapped[8 + length :], **header[name]) for name in ARRAYS}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{path}: must be a shard of a token store, got something else: {error!r}") from error
        arrays = self.arrays
        totals = {"part_ends": "is_text", "image_ends": "codes", "text_ends": "text", "key_ends": "keys"}
        for ends, content in totals.items():
            total = int(arrays[ends][-1]) if len(arrays[ends]) else 0
            if total != len(arrays[content]):
                raise StoreError(f"{path}: {ends} must end with {len(arrays[content])}, got {total}")

    def __len__(self) -> int:
        return len(self.arrays["kinds"])

    def __getitem__(self, row: int) -> dict[str, Any]:
        arrays = self.arrays
        first_part, last_part = _range(arrays["part_ends"], row)
        image = _range(arrays["image_ends"], row)[0]
        text = first_part - image
        parts: list[Any] = []
        for is_text in arrays["is_text"][first_part:last_part].tolist():
            if is_text:
                begin, end = _range(arrays["text_ends"], text)
                parts.append(arrays["text"][begin:end].tobytes().decode())
                text += 1
            else:
                parts.append(np.array(arrays["codes"][image]))
                image += 1
        begin, end = _range(arrays["key_ends"], row)
        key = arrays["keys"][begin:end].tobytes().decode("utf-8", "surrogatepass")
        return from_parts(KINDS[arrays["kinds"][row]], key, parts)


def _range(ends: np.ndarray, row: int) -> tuple[int, int]:
    return int(ends[row - 1]) if row else 0, int(ends[row])


_DTYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "I32": np.int32}


def _array(content: np.ndarray, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    begin, end = data_offsets
    if not 0 <= begin <= end <= len(content):
        raise ValueError(f"the file ends before byte {end} of its data")
    return content[begin:end].view(_DTYPES[dtype]).reshape(shape)


def shard_bytes(samples: Sequence[dict[str, Any]], tokenizer: TokenizerIdentity, about: dict[str, str]) -> bytes:
    """Return the bytes of the file of one shard.

    Args:
        samples: a dict of `kind`, `key` and `parts` (lists of codes, and strings; already checked) for each sample.
        tokenizer: the tokenizer that made the codes.
        about: further metadata of the file.
    """
    from safetensors.numpy import save

    parts = [part for sample in samples for part in sample["parts"]]
    images = [part for part in parts if not isinstance(part, str)]
    texts = [part.encode() for part in parts if isinstance(part, str)]
    keys = [name_bytes(sample["key"]) for sample in samples]
    images_of = [sum(not isinstance(part, str) for part in sample["parts"]) for sample in samples]
    code_type = np.uint16 if tokenizer.codebook_size <= 65536 else np.int32
    arrays = {
        "kinds": np.array([KINDS.index(sample["kind"]) for sample in samples], dtype=np.uint8),
        "part_ends": _ends([len(sample["parts"]) for sample in samples]),
        "image_ends": _ends(images_of),
        "is_text": np.array([isinstance(part, str) for part in parts], dtype=np.uint8),
        "codes": np.array(images, dtype=code_type).reshape(-1, tokenizer.codes_per_image),
        "text": np.frombuffer(b"".join(texts), dtype=np.uint8),
        "text_ends": _ends(list(map(len, texts))),
        "keys": np.frombuffer(b"".join(keys), dtype=np.uint8),
        "key_ends": _ends(list(map(len, keys))),
    }
    return _in_order(save(arrays, metadata={"format": FORMAT, "version": str(VERSION), **about}))


def _in_order(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file, which the library writes in another order each time."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _ends(lengths: list[int]) -> np.ndarray:
    ends = np.cumsum(lengths, dtype=np.int64)
    if len(ends) and ends[-1] >= 1 << 32:
        raise StoreError(f"a shard must hold less than 4 GiB of text, got {int(ends[-1])} bytes")
    return ends.astype(np.uint32)


def index_bytes(
    tokenizer: TokenizerIdentity,
    shards: list[dict[str, Any]],
    kinds: dict[str, int],
    skipped: int,
    run: dict[str, Any],
) -> bytes:
    """Return the bytes of `index.json`."""
    index = {"format": FORMAT, "version": VERSION, "tokenizer": asdict(tokenizer)}
    index |= {"samples": sum(shard["samples"] for shard in shards), "kinds": kinds, "skipped": skipped}
    return (json.dumps(index | {"run": run, "shards": shards}, indent=1) + "\n").encode()


def index_name(split: Split = WHOLE) -> str:
    """Return the name of the index that one of `split.count` writers makes."""
    return "index.json" if split.count == 1 else f"index.{split.index:05d}-of-{split.count:05d}.json"


def _indexes(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return (path, content) of the index of a folder, or of the indexes of all its writers."""
    if not folder.is_dir():
        raise StoreError(
            f"{folder}: expected the folder of a token store, got {'a file' if folder.exists() else 'none'}"
        )
    names = sorted(name for name in os.listdir(folder) if re.fullmatch(r"index(\.\d{5}-of-\d{5})?\.json", name))
    if not names:
        begun = any(name.endswith(".run.json") for name in os.listdir(folder))
        unfinished = ", but an unfinished one, whose run must be resumed" if begun else ""
        raise StoreError(f"{folder}: no token store is here{unfinished}")
    expected = [index_name()]
    if names != expected:
        count = int(names[-1][-10:-5])
        expected = [index_name(Split(part, count)) for part in range(count)]
    if names != expected:
        missing = sorted(set(expected) - set(names)) or sorted(set(names) - set(expected))
        raise StoreError(
            f"{folder}: expected {len(expected)} index files of one job, {missing[0]} is missing or one more"
        )
    return [(folder / name, read_index(folder / name)) for name in names]


def read_index(path: Path) -> dict[str, Any]:
    """Read an index.

    Raises:
        StoreError: the file is no index, or one of a later version.
    """
    try:
        index = read_json(path, limits.MAX_FILE_BYTES)
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']!r}")
        if index["version"] > VERSION:
            raise ValueError(f"version {index['version']}, which a later seed_fast wrote")
        index["tokenizer"], index["run"], int(index["samples"]), int(index["skipped"])
        for shard in index["shards"]:
            os.fspath(shard["file"]), int(shard["samples"]), int(shard["images"])
        for kind, count in index["kinds"].items():
            KINDS.index(kind), int(count)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: must be the index of a token store, version {VERSION}, got: {error}") from error
    return index


def _identity(path: Path, index: dict[str, Any]) -> TokenizerIdentity:
    try:
        return TokenizerIdentity(**index["tokenizer"])
    except TypeError as error:
        raise StoreError(f"{path}: must say which tokenizer made the codes: {error}") from None
