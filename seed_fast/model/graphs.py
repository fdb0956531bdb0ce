"""CUDA graphs of a plan's stages: some hundred kernel launches become one, for batches of any size.

A stage is a function of a batch whose rows don't depend on each other. It is captured once per bucket (1, 2, 4, ... 64
rows), when a batch of that size first comes. A batch is copied into the input of the smallest bucket that holds it, the
graph is replayed, and the rows of the batch are copied out. A batch of more than 64 rows is computed in parts of 64,
so it needs no more memory than 64; the matrix products of 64 images (16 448 rows) fill the largest GPU.

Memory: all graphs of a plan share one pool, so that it holds the activations of one stage at one bucket, not the sum.
They may overwrite each other's results, which is sound because replays take turns and every result is copied out
within its turn.

Threads and streams: a plan may be called from several of both. A lock orders threads, an event orders streams; what
runs beside a replay is everything else, such as copies of the next batch. Within somebody else's capture, where no
graph can be replayed, the stage runs as it is and becomes part of that capture.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
WARM_UPS = 2  # the first call loads kernels and makes workspaces, which no capture may do
_CAPTURING = threading.Lock()  # one capture at a time is what torch allows a process

Stage = Callable[[Tensor], Tensor]


def in_parts(stage: Stage, rows: Tensor, most: int = BUCKETS[-1]) -> Tensor:
    """Return `stage(rows)`, computed by at most `most` rows at a time, which bounds the memory of its activations."""
    if len(rows) <= most:
        return stage(rows)
    result: Tensor | None = None
    for at in range(0, len(rows), most):
        made = stage(rows[at : at + most])
        if result is None:
            result = made.new_empty(len(rows), *made.shape[1:])
        result[at : at + most] = made
    assert result is not None
    return result


class Recorder(Protocol):
    """Interface of a recorder: it captures graphs and orders their replays."""

    def turn(self) -> AbstractContextManager[None]:
        """Return a context in which no other graph of the plan runs; work of earlier turns is finished first."""

    def capture(self, stage: Stage, rows: Tensor) -> tuple[Callable[[], object], Tensor]:
        """Capture `stage(rows)`; return a function that replays it, and the tensor that then holds its result.

        Called within a turn.
        """

    def is_capturing(self) -> bool:
        """Return True if the caller is capturing a graph of its own."""


class CudaRecorder:
    """Recorder of CUDA graphs of one device, which share one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._last, self._lock = torch.cuda.Event(), threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._lock, torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._last)
            try:
                yield
            finally:
                self._last.record(stream)

    def capture(self, stage: Stage, rows: Tensor) -> tuple[Callable[[], object], Tensor]:
        caller = torch.cuda.current_stream()
        # Also after earlier replays: graphs use the cuBLAS workspace of this stream, and so do warm-ups.
        self._stream.wait_stream(caller)
        with _CAPTURING:
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    stage(rows)
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads may call CUDA meanwhile, for example to pin memory.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = stage(rows)
        caller.wait_stream(self._stream)
        return graph.replay, result

    def is_capturing(self) -> bool:
        with torch.cuda.device(self._device):
            return torch.cuda.is_current_stream_capturing()


class Captured(NamedTuple):
    """A stage at one bucket."""

    rows: Tensor  # [bucket, ...]: static input
    result: Tensor  # [bucket, ...]: static output, valid until the next replay of any graph of the plan
    replay: Callable[[], object]


class Graphs:
    """Turns the stages of one plan into functions that replay CUDA graphs.

    Args:
        device: device of the graphs; a CUDA device, unless `recorder` is for another one.
        recorder: default: a `CudaRecorder` with a memory pool of its own.
        buckets: batch sizes to capture, ascending.
    """

    def __init__(
        self, device: torch.device, *, recorder: Recorder | None = None, buckets: Sequence[int] = BUCKETS
    ) -> None:
        self._device, self._buckets = device, tuple(buckets)
        self._recorder = recorder or CudaRecorder(device)

    def stage(self, function: Stage, row_shape: Sequence[int], dtype: torch.dtype) -> Stage:
        """Return `function` with one graph per bucket.

        Args:
            function: turns rows [B, *row_shape] of `dtype` into [B, ...], each row by itself, and can be captured. It
                is kept, so it must not refer to the plan: a reference cycle would free the plan's memory late.
            row_shape: shape of one row.
            dtype: dtype of the rows that `function` takes.

        Returns:
            A function that computes the same from rows of any dtype; it raises ValueError for rows of another shape.
        """
        captured: dict[int, Captured] = {}
        most, shape = self._buckets[-1], tuple(row_shape)

        def part(rows: Tensor) -> Tensor:
            bucket = next(size for size in self._buckets if size >= len(rows))
            with self._recorder.turn():
                if bucket not in captured:
                    captured[bucket] = self._capture(function, (bucket, *shape), dtype)
                graph = captured[bucket]
                graph.rows[: len(rows)].copy_(rows)
                graph.replay()
                return graph.result[: len(rows)].clone()

        @torch.no_grad()
        def run(rows: Tensor) -> Tensor:
            if rows.shape[1:] != shape:
                raise ValueError(f"plan: a batch must be {['B', *shape]}, got {list(rows.shape)}")
            if not len(rows) or self._recorder.is_capturing():
                return in_parts(function, rows.to(self._device, dtype), most)
            return in_parts(part, rows, most)

        return run

    def _capture(self, function: Stage, shape: tuple[int, ...], dtype: torch.dtype) -> Captured:
        # Not in inference mode, whose tensors can't be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            # Zeros, because what earlier memory held may be NaN, on which some kernels take a slow path.
            rows = torch.zeros(shape, dtype=dtype, device=self._device)
            replay, result = self._recorder.capture(function, rows)
        return Captured(rows, result, replay)
