"""Measure seconds per named stage, by the host's clock or the GPU's.

Device stages are bracketed by CUDA events, so launching the next one never waits for the last; `resolve` reads the
events once per batch, after the results were needed anyway. On a CPU a stage is the wall time of its block.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


class Stage(NamedTuple):
    """One row of the table."""

    name: str
    where: str  # "main", "device" or "workers"
    seconds: float
    share: float  # of the sum of all stages, 0 to 1


class StageTimer:
    """Adds up seconds per stage, in the order in which the stages are declared.

    Args:
        stages: name of each stage and where it runs ("main", "device", "workers").
        device: on a CUDA device, "device" stages are measured by events on its current stream; otherwise by the
            host's clock.

    Examples:
        >>> timer = StageTimer({"ViT": "device", "write": "main"})
        >>> with timer.measure("write"):
        ...     pass
        >>> [stage.name for stage in timer.stages()]
        ['ViT', 'write']
    """

    def __init__(self, stages: dict[str, str], device: torch.device | None = None) -> None:
        self._where = dict(stages)
        self._seconds = dict.fromkeys(stages, 0.0)
        self._events: deque[tuple[str, Any, Any]] = deque()
        self._device = device if device is not None and device.type == "cuda" else None

    def add(self, name: str, seconds: float) -> None:
        """Count seconds measured elsewhere, such as in a worker process."""
        self._seconds[name] += seconds

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Time the block as stage `name`."""
        if self._device is not None and self._where[name] == "device":
            import torch

            stream = torch.cuda.current_stream(self._device)
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record(stream)
            yield
            end.record(stream)
            self._events.append((name, start, end))
        else:
            begin = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - begin

    def resolve(self, *, wait: bool = True) -> None:
        """Add the times of recorded events, once per batch.

        Args:
            wait: wait for all events. Otherwise only those that have passed count now, and the GPU isn't waited for.
        """
        while self._events and (wait or self._events[0][2].query()):
            name, start, end = self._events.popleft()
            end.synchronize()
            self._seconds[name] += start.elapsed_time(end) / 1000  # events tell milliseconds

    def seconds(self, where: str) -> float:
        """Return the sum of the stages that run at `where`, s."""
        return sum(seconds for name, seconds in self._seconds.items() if self._where[name] == where)

    def stages(self) -> list[Stage]:
        """Return every stage with its seconds and its share of the sum of all stages."""
        total = sum(self._seconds.values())
        return [
            Stage(name, self._where[name], seconds, seconds / total if total else 0.0)
            for name, seconds in self._seconds.items()
        ]
