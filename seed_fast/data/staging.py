"""Batches of uint8 pixels on their way to the device: pinned, double-buffered, copied beside the work of the model.

A quarter of the bytes of float32 pixels cross the bus, and normalising is done where they arrive. On a GPU a batch
passes through one of two slots, each a pinned buffer and its copy on the device:

    host      write slot 0        write slot 1        write slot 0 (when its copy has left it)
    copies              slot 0              slot 1    ...          (when the device has read the slot's last batch)
    device                     read slot 0         read slot 1

Without a GPU a slot is one buffer and there is nothing to copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

SLOTS = 2


class Link(Protocol):
    """A connection from host memory to a device: its buffers, streams and events."""

    ahead: int  # batches that may be launched before the codes of the first are read

    def buffers(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return (host, device) uint8 memory of a shape."""

    def event(self) -> Any:
        """Return an event with `record(stream)` and `synchronize()`; one that was never recorded has passed."""

    def streams(self) -> tuple[Any, Any]:
        """Return (stream of the copies, the caller's computing stream), which have `wait_event(event)`."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy on the stream of the copies, without waiting."""


class CudaLink:
    """Connection to a GPU: pinned memory, and a stream for copies."""

    ahead = 1

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def buffers(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        return (
            torch.empty(shape, dtype=torch.uint8, pin_memory=True),
            torch.empty(shape, dtype=torch.uint8, device=self._device),
        )

    def event(self) -> torch.cuda.Event:
        return torch.cuda.Event(blocking=True)  # a host that waits leaves its core to the workers

    def streams(self) -> tuple[Any, Any]:
        return self._stream, torch.cuda.current_stream(self._device)

    def copy(self, target: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)


class _Passed:
    """The event and the stream of a device that has done everything when a call returns."""

    def record(self, stream: Any) -> None: ...

    def synchronize(self) -> None: ...

    def wait_event(self, event: Any) -> None: ...


class HostLink:
    """Connection of a CPU to itself: nothing is copied."""

    ahead = 0

    def buffers(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        memory = torch.empty(shape, dtype=torch.uint8)
        return memory, memory

    def event(self) -> _Passed:
        return _Passed()

    def streams(self) -> tuple[Any, Any]:
        return _Passed(), _Passed()

    def copy(self, target: Tensor, source: Tensor) -> None: ...


def link_to(device: torch.device) -> Link:
    """Return the connection to `device`."""
    return CudaLink(device) if device.type == "cuda" else HostLink()


class _Slot(NamedTuple):
    host: Tensor  # [batch_size, S, S, 3] uint8
    device: Tensor
    copied: Any  # event: the copy has left `host` and is whole in `device`
    read: Any  # event: the caller's work on `device` is done


class Sent(NamedTuple):
    """A batch whose copy to the device has been started."""

    pixels: Tensor  # [B, S, S, 3] uint8 on the device; not there before `copied`
    copied: Any
    read: Any


class Staging:
    """Copies batches to the device, in order, in constant memory.

    Args:
        link: connection to the device.
        batch_size: images per batch, at most.
        image_size: side S of the images, px.
    """

    def __init__(self, link: Link, batch_size: int, image_size: int) -> None:
        self._link = link
        shape = (batch_size, image_size, image_size, 3)
        self._slots = [_Slot(*link.buffers(shape), link.event(), link.event()) for _ in range(SLOTS)]
        self._batches = 0

    def send(self, images: Sequence[np.ndarray]) -> Sent:
        """Start the copy of one batch of images, each uint8 [S, S, 3].

        Waits if the slot's last batch is still being copied, which keeps the caller from running ahead.
        """
        slot = self._slots[self._batches % SLOTS]
        self._batches += 1
        slot.copied.synchronize()
        host, device = slot.host[: len(images)], slot.device[: len(images)]
        np.stack(images, out=host.numpy())
        copies, _ = self._link.streams()
        copies.wait_event(slot.read)
        self._link.copy(device, host)
        slot.copied.record(copies)
        return Sent(device, slot.copied, slot.read)

    @contextmanager
    def received(self, sent: Sent) -> Iterator[Tensor]:
        """Yield the batch on the device, uint8 [B, S, S, 3].

        What the block launches on the current stream sees it; what is launched after it may see a later batch.
        """
        _, work = self._link.streams()
        work.wait_event(sent.copied)
        try:
            yield sent.pixels
        finally:
            sent.read.record(work)


class Fetched(NamedTuple):
    """A result whose copy to the host has been started."""

    values: Tensor  # on the host; not there before `passed`
    passed: Callable[[], object]

    def numpy(self) -> np.ndarray:
        """Return the values; waits for them and for nothing later."""
        self.passed()
        return self.values.numpy()


def fetch(values: Tensor, link: Link) -> Fetched:
    """Start copying a result to the host (pinned memory, on a GPU), behind what made it."""
    event = link.event()
    on_host = values.to("cpu", non_blocking=True)
    event.record(link.streams()[1])
    return Fetched(on_host, event.synchronize)
