"""Read, decode and resize images in worker processes, in order and with bounded memory.

Workers are spawned, not forked: by then the parent has run torch, and the thread pool of its OpenMP does not survive a
fork (a forked worker hangs in it). See `worker` for what a spawned one is.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np

from seed_fast.data.image_processor import ImageError, ImageProcessor, load_image
from seed_fast.data.shards import Entry, read_entry
from seed_fast.data.worker import start_worker

CHUNK = 8  # images per message between processes: few messages, and a worker is never far behind the others


class WorkerDied(RuntimeError):
    """A worker process ended by itself or was killed."""


class Decoded(NamedTuple):
    """One image, ready to be normalised, or the reason why there is none."""

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
        data = read_entry(entry)
        read = time.perf_counter()
        pixels = processor.resize_uint8(load_image(data, entry.path), entry.path)
    except ImageError as reason:
        error = str(reason)
    end = time.perf_counter()
    return Decoded(entry.path, pixels, error, read - start, end - read)


class Decoder:
    """A pool of `workers` processes that decode entries; with 0 workers the caller's process does it.

    Args:
        processor: how to resize.
        workers: number of processes.
        ahead: how many images may be decoded before they are asked for: the bound on memory.

    Raises:
        WorkerDied: while iterating, when a worker was killed (out of memory?) or crashed in a decoder.
    """

    def __init__(self, processor: ImageProcessor, workers: int, ahead: int) -> None:
        self._processor = processor
        self._window = max(1, -(-ahead // CHUNK), 2 * workers)  # chunks in flight
        self._pool = None
        if workers:
            self._pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker)
        self.waiting_seconds = 0.0  # of the caller, for workers

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def map(self, entries: Iterable[Entry]) -> Iterator[Decoded]:
        """Every entry decoded, in the order of `entries`, which is read only as far as the window reaches."""
        if self._pool is None:
            yield from (decode_entry(entry, self._processor) for entry in entries)
            return
        entries = iter(entries)
        in_flight: deque[tuple[Future[list[Decoded]], list[Entry]]] = deque()
        try:
            while True:
                while len(in_flight) < self._window and (chunk := list(islice(entries, CHUNK))):
                    with _interrupts_blocked():
                        in_flight.append((self._pool.submit(_decode_chunk, chunk, self._processor), chunk))
                if not in_flight:
                    return
                start = time.perf_counter()
                decoded = in_flight[0][0].result()
                self.waiting_seconds += time.perf_counter() - start
                in_flight.popleft()
                yield from decoded
        except BrokenProcessPool:
            first = in_flight[0][1][0].path if in_flight else "an image"
            raise WorkerDied(
                f"a decoding worker died at {first} or soon after: killed (out of memory?) or crashed by an image"
            ) from None


def _decode_chunk(entries: list[Entry], processor: ImageProcessor) -> list[Decoded]:
    return [decode_entry(entry, processor) for entry in entries]


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Workers are started by submitting, and inherit the mask: Ctrl-C in a starting worker would print a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
