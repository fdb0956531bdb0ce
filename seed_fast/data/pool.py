"""Worker processes that map a function over a stream, in order and with bounded memory.

Workers are spawned, not forked: by then the parent has run torch, and the thread pool of its OpenMP does not survive a
fork (a forked worker hangs in it). See `worker` for what a spawned one is.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

from seed_fast.data.worker import start_worker

CHUNK = 8  # images per message between processes: few messages, and a worker is never far behind the others

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerDied(RuntimeError):
    """A worker process ended by itself or was killed."""


class Pool:
    """`workers` processes; with 0 workers the caller's process does the work.

    Args:
        workers: number of processes.
        ahead: how many items may be done before they are asked for: the bound on memory.
    """

    def __init__(self, workers: int, ahead: int) -> None:
        self._window = max(1, -(-ahead // CHUNK), 2 * workers)  # chunks in flight
        self.executor = None
        if workers:
            self.executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker)
        self.waiting_seconds = 0.0  # of the caller, for workers

    def close(self) -> None:
        """End the workers; what they have in hand is dropped."""
        if self.executor is not None:
            self.executor.shutdown(wait=False, cancel_futures=True)

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], name: Callable[[Item], str]
    ) -> Generator[Result, None, None]:
        """The results of `function`, in the order of `items`, which is read only as far as the window reaches.

        Args:
            function: picklable, when there are workers.
            name: what an error calls an item.

        Raises:
            WorkerDied: while iterating, when a worker was killed (out of memory?) or crashed in a decoder.
        """
        if self.executor is None:
            yield from map(function, items)
            return
        items = iter(items)
        in_flight: deque[tuple[Future[list[Result]], list[Item]]] = deque()
        try:
            while True:
                while len(in_flight) < self._window and (chunk := list(islice(items, CHUNK))):
                    with _interrupts_blocked():
                        in_flight.append((self.executor.submit(_map_chunk, function, chunk), chunk))
                if not in_flight:
                    return
                start = time.perf_counter()
                results = in_flight[0][0].result()
                self.waiting_seconds += time.perf_counter() - start
                in_flight.popleft()
                yield from results
        except BrokenProcessPool:
            first = name(in_flight[0][1][0]) if in_flight else "an image"
            raise WorkerDied(
                f"a decoding worker died at {first} or soon after: killed (out of memory?) or crashed by an image"
            ) from None
        finally:
            for future, _ in in_flight:  # the caller has left early
                future.cancel()


def _map_chunk(function: Callable[[Item], Result], chunk: list[Item]) -> list[Result]:
    return list(map(function, chunk))


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
