"""Staging: the right pixels arrive whatever the streams do, in constant memory."""

from __future__ import annotations

import random
from collections import deque

import numpy as np
import pytest
import torch

from seed_fast.data.staging import HostLink, Staging, fetch, link_to


class Stream:
    """Does what was put into it later, when the test's luck wills it."""

    def __init__(self) -> None:
        self.work: deque = deque()

    def wait_event(self, event: Event) -> None:
        turn = event.recorded
        self.work.append(lambda: event.passed >= turn)

    def step(self) -> bool:
        """Whether the next piece of work could be done."""
        if self.work and self.work[0]() is not False:
            self.work.popleft()
            return True
        return False


class Event:
    def __init__(self, link: SlowLink) -> None:
        self.link, self.recorded, self.passed = link, 0, 0

    def record(self, stream: Stream) -> None:
        self.recorded += 1
        turn = self.recorded

        def passes() -> None:
            self.passed = turn

        stream.work.append(passes)

    def synchronize(self) -> None:
        self.link.run(lambda: self.passed >= self.recorded)


class SlowLink:
    """Two streams in no order but that of their events: what a GPU may do, without one."""

    ahead = 1

    def __init__(self, seed: int) -> None:
        self.luck, self.copies, self.work = random.Random(seed), Stream(), Stream()
        self.allocated = 0

    def run(self, until) -> None:
        idle = 0
        while not until():
            idle = 0 if self.luck.choice((self.copies, self.work)).step() else idle + 1
            assert idle < 1000, "the streams wait for each other"

    def buffers(self, shape):
        self.allocated += 1
        return torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape, dtype=torch.uint8)

    def event(self):
        return Event(self)

    def streams(self):
        return self.copies, self.work

    def copy(self, target, source):
        rows = len(source)
        for row in range(rows):  # a copy that is interrupted shows half a batch
            self.copies.work.append(lambda row=row: target[row].copy_(source[row]))


def pictures(number: int, count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(number)
    return [generator.integers(0, 256, (4, 4, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_every_batch_is_seen_as_it_was_whatever_the_order_of_streams(seed: int) -> None:
    link = SlowLink(seed)
    staging = Staging(link, batch_size=3, image_size=4)
    seen = []
    batches = [pictures(number, 3 if number < 9 else 2) for number in range(10)]
    for images in batches:
        with staging.received(staging.send(images)) as pixels:
            for _ in range(link.luck.randrange(4)):
                link.work.work.append(lambda: None)
            link.work.work.append(lambda pixels=pixels: seen.append(pixels.clone()))
        for _ in range(link.luck.randrange(6)):
            link.luck.choice((link.copies, link.work)).step()
    link.run(lambda: not link.work.work)
    assert all(np.array_equal(found, np.stack(images)) for found, images in zip(seen, batches, strict=True))
    assert link.allocated == 2


def test_the_host_waits_when_it_is_two_batches_ahead() -> None:
    link = SlowLink(0)
    staging = Staging(link, batch_size=3, image_size=4)
    for number in range(2):
        with staging.received(staging.send(pictures(number, 3))):
            pass
    waiting = len(link.copies.work)
    staging.send(pictures(2, 3))
    assert len(link.copies.work) <= waiting, "the first copy had to leave the slot before the third batch came into it"


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_a_result_is_waited_for_when_it_is_read(dtype: torch.dtype) -> None:
    link = SlowLink(1)
    values = torch.arange(6).to(dtype)
    fetched = fetch(values, link)
    assert link.work.work
    assert np.array_equal(fetched.numpy(), values.numpy())
    assert not link.work.work


def test_a_cpu_copies_nothing() -> None:
    link = link_to(torch.device("cpu"))
    assert isinstance(link, HostLink)
    staging = Staging(link, batch_size=2, image_size=4)
    seen = []
    for number in range(4):
        images = pictures(number, 1 + number % 2)
        with staging.received(staging.send(images)) as pixels:
            assert np.array_equal(pixels, np.stack(images))
            seen.append(pixels.data_ptr())
    assert len(set(seen)) == 2
    assert np.array_equal(fetch(torch.arange(3), link).numpy(), [0, 1, 2])


def on_gpu(test):
    reason = "" if torch.cuda.is_available() else "no CUDA device"
    return pytest.mark.gpu(pytest.mark.skipif(bool(reason), reason=reason or "has a GPU")(test))


@on_gpu
def test_a_gpu_sees_every_batch_while_it_is_busy() -> None:
    device = torch.device("cuda", 0)
    link = link_to(device)
    staging, seen = Staging(link, batch_size=8, image_size=224), []
    slow = torch.randn(2048, 2048, device=device)
    batches = [[np.full((224, 224, 3), 8 * number + row, np.uint8) for row in range(8)] for number in range(12)]
    for images in batches:
        with staging.received(staging.send(images)) as pixels:
            for _ in range(20):
                slow = (slow @ slow).clamp(-1, 1)
            seen.append(fetch(pixels.double().mean((1, 2, 3)), link))
    expected = [[image[0, 0, 0] for image in images] for images in batches]
    assert [found.numpy().tolist() for found in seen] == expected


@on_gpu
def test_normalising_on_a_gpu_gives_every_bit_of_the_cpus() -> None:
    from seed_fast.data.image_processor import ImageProcessor

    pixels = torch.arange(256, dtype=torch.uint8).repeat(3 * 16).view(4, 32, 32, 3)
    processor = ImageProcessor(32)
    assert torch.equal(processor.normalize(pixels.cuda()).cpu(), processor.normalize(pixels))
