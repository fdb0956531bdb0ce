"""Timing: interleaved rounds on a CPU, CUDA-graph replays on a GPU, and the ceilings that both are compared with.

Machines are shared, so times of one run are compared only with times of the same run. On a CPU every round calls every
provider once, in rotated order, and a ratio is the median of the ratios of the rounds: a noisy minute slows both sides.
"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from benchmarks.providers import Call, Unavailable, environment
from seed_fast.profile.analysis import quantiles
from seed_fast.profile.ceilings import ceilings

__all__ = [
    "CudaGraph", "CudaWall", "TimesItself", "TooLong", "ceilings", "cuda_copies", "interleave", "limit", "quantiles",
    "ratio", "seconds",
]  # fmt: skip

SAMPLE_SECONDS = 0.01  # a CPU sample repeats the call until it lasts about this long
SLOW_SECONDS = 0.1
# GNU OpenMP's threads spin for milliseconds after their work; one provider's must not run into the next one's time.
PAUSE_SECONDS = 0.01
MINIMUM_ROUNDS, MAXIMUM_ROUNDS = 5, 40
GRAPH_COPIES = 256  # at most so many copies of the inputs rotate through one CUDA graph


class TimesItself(Protocol):
    """Something to time that knows how."""

    def seconds(self, repeats: int) -> float:
        """Seconds of one call; the mean of at least `repeats`."""


class TooLong(BaseException):
    """The time of `limit` is up. Not an `Exception`, so that no compiler takes it for a failure of its own."""


@contextmanager
def limit(most: float | None) -> Iterator[None]:
    """Raise `TooLong` in the block after `most` seconds; None is no limit.

    It works in the main thread only, and has no effect on Windows.
    """
    if most is None or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, most)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median over rounds of numerator / denominator; both hold one sample per round.

    Raises:
        ValueError: they have different numbers of samples.
    """
    if len(numerator) != len(denominator):
        raise ValueError(f"ratio: expected one sample per round, got {len(numerator)} and {len(denominator)}")
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def seconds(call: Call | TimesItself, repeats: int) -> float:
    """Seconds of one call; the mean of `repeats` in a row."""
    if hasattr(call, "seconds"):
        return float(call.seconds(repeats))
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def interleave(
    calls: Mapping[str, Call | TimesItself],
    budget: float,
    environments: Mapping[str, Mapping[str, str]] | None = None,
    minimum: int | None = None,
) -> dict[str, list[float]]:
    """Time several calls in interleaved rounds.

    Args:
        calls: what to time, by name. Each has been called before, so that nothing is compiled or allocated for the
            first time in here.
        budget: seconds to spend in all; the fewest rounds are run even if they take longer.
        environments: environment variables to set around the calls of a name.
        minimum: the fewest rounds, for calls that take seconds: a sample is one call, and no call comes before the
            first round. Default: `MINIMUM_ROUNDS`, of samples that last about `SAMPLE_SECONDS`.

    Returns:
        {name: seconds of one call, a sample per round}; all have the same number of rounds.
    """
    environments = environments or {}
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    # How often each call is repeated within a sample.
    repeats = {}
    for name in names:
        if minimum is not None:
            repeats[name] = 1
            continue
        with environment(environments.get(name, {})):
            lasts = seconds(calls[name], 1)
            if lasts < SLOW_SECONDS:  # the first one of a short call may say little
                lasts = seconds(calls[name], 1)
            repeats[name] = max(1, round(SAMPLE_SECONDS / lasts))
    # Rounds, each in an order of its own, until the time is spent.
    end = time.perf_counter() + budget
    for turn in range(MAXIMUM_ROUNDS):
        if turn >= (minimum or MINIMUM_ROUNDS) and time.perf_counter() > end:
            break
        at = turn % max(1, len(names))
        for name in names[at:] + names[:at]:
            time.sleep(PAUSE_SECONDS)
            with environment(environments.get(name, {})):
                if repeats[name] > 1:  # a call this short would otherwise be timed with its threads asleep
                    seconds(calls[name], 1)
                samples[name].append(seconds(calls[name], repeats[name]))
    return samples


def cuda_copies(bytes_per_copy: float) -> int:
    """How many copies of the inputs to rotate through, so that none is still in the L2 cache when its turn comes."""
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return int(min(GRAPH_COPIES, max(2, -(-3 * cache // max(1, bytes_per_copy)))))


class CudaWall:
    """Times calls on a GPU by the wall clock, launches included.

    Args:
        calls: the same work on copies of the inputs that do not fit into the L2 cache together.
    """

    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls

    def seconds(self, repeats: int) -> float:
        """Seconds of one call; the mean of at least `repeats`, in whole rotations."""
        rotations = -(-repeats // len(self._calls))
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(rotations):
            for call in self._calls:
                call()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / (rotations * len(self._calls))


class CudaGraph:
    """Times calls on a GPU without launches: one CUDA graph of all of them is replayed.

    Args:
        calls: the same work on copies of the inputs that do not fit into the L2 cache together.

    Raises:
        Unavailable: they cannot be captured.
    """

    def __init__(self, calls: list[Call]) -> None:
        self._length = len(calls)
        self._graph = torch.cuda.CUDAGraph()
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        try:
            with torch.cuda.graph(self._graph):
                for call in calls:
                    call()
        except RuntimeError as error:
            raise Unavailable(f"no device time: cannot be captured ({str(error).splitlines()[0]})") from error

    def seconds(self, repeats: int) -> float:
        """Seconds of one call; the mean of at least `repeats`, in whole replays."""
        replays = -(-repeats // self._length)
        begin, end = self._events
        begin.record()
        for _ in range(replays):
            self._graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000 / (replays * self._length)
