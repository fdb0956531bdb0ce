"""Read, decode and resize images in worker processes, in order and with bounded memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from seed_fast._remarks import give_back_stderr, named_remarks
from seed_fast.data.image_processor import ImageError, ImageProcessor, load_image
from seed_fast.data.pool import CHUNK, Pool, WorkerDied
from seed_fast.data.shards import Entry, read_entry
from seed_fast.limits import ITEM_SECONDS

__all__ = ["CHUNK", "Decoded", "ImageDecoder", "WorkerDied", "decode_entry", "too_slow_error"]


class Decoded(NamedTuple):
    """A decoded image, ready to be normalised, or the reason why there is none."""

    path: str
    pixels: np.ndarray | None  # uint8 [S, S, 3]
    error: str | None  # one line that names the image
    read_seconds: float
    decode_seconds: float


def decode_entry(entry: Entry, processor: ImageProcessor) -> Decoded:
    """Read, decode and resize one image. An `ImageError` is returned, not raised."""
    start = read = time.perf_counter()
    pixels = error = None
    try:
        with named_remarks(entry.path):
            data = read_entry(entry)
            read = time.perf_counter()
            pixels = processor.resize_uint8(load_image(data, entry.path), entry.path)
    except ImageError as reason:
        error = str(reason)
    except MemoryError:
        error = f"{entry.path}: there is no memory to read or decode it"
    end = time.perf_counter()
    return Decoded(entry.path, pixels, error, read - start, end - read)


class ImageDecoder:
    """A pool of `workers` processes that decode entries; with 0 workers the caller's process does it.

    Args:
        processor: resizes images.
        workers: number of processes.
        ahead: number of images that may be decoded before they are asked for, which bounds the memory.
        seconds_per_item: time limit of one image, s; an image that takes longer gets an error.

    Raises:
        WorkerDied: while iterating, when a worker was killed (out of memory?), crashed in a decoder or didn't start.
    """

    def __init__(
        self, processor: ImageProcessor, workers: int, ahead: int, *, seconds_per_item: float = ITEM_SECONDS
    ) -> None:
        self._decode = partial(decode_entry, processor=processor)
        self._pool = Pool(workers, ahead, seconds_per_item=seconds_per_item)

    def __enter__(self) -> ImageDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    @property
    def waiting_seconds(self) -> float:
        """Seconds that the caller has waited for workers."""
        return self._pool.waiting_seconds

    def map(self, entries: Iterable[Entry]) -> Iterator[Decoded]:
        """Yield every entry decoded, in the order of `entries`, which is read only as far ahead as `ahead` allows."""
        yield from self._pool.map(self._decode, entries, _path, size=_content_size, too_slow=_too_slow)


def _path(entry: Entry) -> str:
    return entry.path


def _content_size(entry: Entry) -> int:
    """Return the bytes that an entry holds in memory: members of compressed shards come with their content."""
    return len(entry.data or b"")


def too_slow_error(name: str, seconds: float) -> str:
    """Return the message for an image that took longer than `seconds` and was given up."""
    give_back_stderr()
    return f"{name}: took more than {seconds:g} s to decode, the limit for one image"


def _too_slow(entry: Entry, seconds: float) -> Decoded:
    return Decoded(entry.path, None, too_slow_error(entry.path, seconds), 0.0, seconds)
