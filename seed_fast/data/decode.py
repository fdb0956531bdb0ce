"""Read, decode and resize images in worker processes, in order and with bounded memory.

Workers are spawned, not forked: by then the parent has run torch, and the thread pool of its OpenMP does not survive a
fork (a forked worker hangs in it). A spawned worker imports Pillow and numpy only, with one BLAS thread, ignores Ctrl-C
(the parent ends it), and ends itself when the parent is gone.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import NamedTuple

import numpy as np

from seed_fast.data.image_processor import ImageError, ImageProcessor, load_image
from seed_fast.data.shards import Entry, read_entry

CHUNK = 8  # images per message between processes: few messages, and a worker is never far behind the others
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


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
        start = time.perf_counter()
        self._pool = _start_pool(workers) if workers else None
        self.waiting_seconds = time.perf_counter() - start if workers else 0.0  # of the caller, for workers

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


def _start_pool(workers: int) -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)
    with _environment(_ONE_THREAD), _interrupts_blocked():
        pool.submit(int).result()  # the first task starts every worker, under this environment and signal mask
    return pool


def _end_with_parent() -> None:
    """In a worker: exit when the parent is gone, even by SIGKILL; the pool's pipes alone would keep it waiting."""
    parent = parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started inside inherit the mask: Ctrl-C reaches the parent alone, and no worker prints a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
