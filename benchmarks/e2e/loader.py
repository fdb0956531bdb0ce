"""The benchmark loader: JPEG files to uint8 pixels on the device, beside the model alone, pixels to codes.

A GPU needs as many CPU cores as the model's images/s divided by those of one worker. The peer is what a user has
without seed_fast: torch's DataLoader over Pillow, which resizes and normalises in its workers and sends float32.

A loader is timed in the middle of a stream, with all of its workers busy; nothing of it runs while others are timed.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.e2e.encode import model
from benchmarks.providers import Bar, Benchmark, Call, Case, Inputs, Provider, Unavailable
from seed_fast import SeedConfig
from seed_fast.data.decode import CHUNK, ImageDecoder
from seed_fast.data.image_processor import ImageProcessor, load_image
from seed_fast.data.shards import Entry
from seed_fast.data.staging import Staging, link_to
from seed_fast.profile.run import photo

MODEL, PEER = "the model alone", "torch DataLoader, 1 worker"
WORKERS = (1, 2, 4, 8, 16)
CHUNKS = 4  # per worker, that are timed at least


def ours(workers: int) -> str:
    """Name of our provider with `workers` workers."""
    return f"seed_fast, {workers} worker{'s' * (workers > 1)}"


@functools.cache
def jpeg(width: int, height: int) -> bytes:
    """A JPEG file of this size in px, with the frequencies of a photograph."""
    file = io.BytesIO()
    Image.open(io.BytesIO(photo())).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def _processor(case: Case) -> ImageProcessor:
    config = SeedConfig.preset(case.options["preset"])
    return ImageProcessor(config.image_size, config.resize)


class Stream(ABC):
    """A loader over many copies of one file. A call, in the sense of a benchmark, is `case.shape["images"]` images.

    Args:
        case: sizes of the file, of the batch and of the model's input.
        device: device that gets the pixels.
        workers: processes that decode.
    """

    def __init__(self, case: Case, device: torch.device, workers: int) -> None:
        self.images, self.device, self.processor = case.shape["images"], device, _processor(case)
        # What a loader may have decoded ahead, in batches: left out at both ends, where not all workers are busy.
        self._margin = 2 + -(-2 * workers * CHUNK // self.images)
        self._timed = max(1, -(-CHUNKS * workers * CHUNK // self.images))
        self._folder = tempfile.TemporaryDirectory()
        self._file = Path(self._folder.name) / "photo.jpg"
        self._file.write_bytes(jpeg(case.options["width"], case.options["height"]))

    @abstractmethod
    def batches(self, paths: list[str]) -> Iterator[Tensor]:
        """Batches of the files' pixels, on the device, in order."""

    def __call__(self) -> Tensor:
        (batch,) = self.batches([str(self._file)] * self.images)
        return batch

    def seconds(self, repeats: int) -> float:
        """Seconds of one call; the mean of at least `repeats` in the middle of a stream."""
        count = max(repeats, self._timed)
        times = [time.perf_counter()]
        for _ in self.batches([str(self._file)] * (self.images * (count + 2 * self._margin))):
            times.append(time.perf_counter())
        return (times[self._margin + count] - times[self._margin]) / count

    def close(self) -> None:
        """Remove the file."""
        self._folder.cleanup()


class SeedFastStream(Stream):
    """The loader of `seed-fast tokenize`."""

    def __init__(self, case: Case, device: torch.device, workers: int) -> None:
        super().__init__(case, device, workers)
        self._decoder = ImageDecoder(self.processor, workers, ahead=2 * self.images)
        self._staging = Staging(link_to(device), self.images, self.processor.image_size)

    def batches(self, paths: list[str]) -> Iterator[Tensor]:
        decoded = self._decoder.map(Entry(path, path) for path in paths)
        while batch := list(itertools.islice(decoded, self.images)):
            decoded_pixels = [image.pixels for image in batch if image.pixels is not None]
            with self._staging.received(self._staging.send(decoded_pixels)) as pixels:
                yield pixels

    def close(self) -> None:
        self._decoder.__exit__()
        super().close()


def _loader(workers: int) -> Provider:
    def prepare(inputs: Inputs, case: Case) -> Call:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if workers > cores:
            raise Unavailable(f"this machine has {cores} core{'s' * (cores > 1)}")
        return SeedFastStream(case, inputs["pixels"].device, workers)

    return Provider(ours(workers), prepare, ours=True)


class Photos(torch.utils.data.Dataset):
    """A data set as users write it: the official transform, in the workers of a DataLoader."""

    def __init__(self, paths: list[str], processor: ImageProcessor) -> None:
        self.paths, self.processor = paths, processor

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        pixels = self.processor.resize_uint8(Image.open(self.paths[index]).convert("RGB"))
        return self.processor.normalize(torch.from_numpy(pixels.copy())[None])[0]


class DataLoaderStream(Stream):
    """The loader of torch."""

    def batches(self, paths: list[str]) -> Iterator[Tensor]:
        on_gpu = self.device.type == "cuda"
        loader = torch.utils.data.DataLoader(
            Photos(paths, self.processor),
            batch_size=self.images,
            num_workers=1,
            pin_memory=on_gpu,
            multiprocessing_context="spawn",  # a forked worker hangs in the OpenMP that its parent has used
        )
        for batch in loader:
            yield batch.to(self.device, non_blocking=True)


class ModelAlone:
    """The inference plan on pixels that are on the device, for as many images as a call of the loaders has."""

    def __init__(self, pixels: Tensor, case: Case) -> None:
        preset, batch = case.options["preset"], case.options["batch"]
        self._plan = model(preset, "encode", pixels.device.type).fast(case.torch_dtype(), "auto")
        self._pixels = _processor(case).normalize(pixels[:batch])
        self._scale = case.shape["images"] / batch

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        codes: Tensor = self._plan.lookup(self._plan.causal_embeddings(self._pixels))
        return codes

    def seconds(self, repeats: int) -> float:
        """Seconds for the images of a call; the mean of `repeats`."""
        start = time.perf_counter()
        for _ in range(repeats):
            codes = self()
        codes.cpu()
        return (time.perf_counter() - start) / repeats * self._scale


def _inputs(case: Case, device: str, seed: int) -> Inputs:
    file = jpeg(case.options["width"], case.options["height"])
    pixels = _processor(case).resize_uint8(load_image(file))
    return {"pixels": torch.from_numpy(np.stack([pixels] * case.shape["images"])).to(device)}


def check(case: Case, provider: Provider, output: Tensor, inputs: Inputs, truth: Tensor) -> tuple[str, str]:
    """Check that pixels equal Pillow's in every bit; codes are checked by the benchmark `encode`."""
    if provider.name == MODEL:
        count = SeedConfig.preset(case.options["preset"]).num_codes
        shape = [case.options["batch"], count]
        return ("" if list(output.shape) == shape else f"codes must be {shape}, got {list(output.shape)}"), ""
    expected = truth if output.dtype == torch.uint8 else _processor(case).normalize(truth)
    return "" if torch.equal(output, expected) else "pixels differ from Pillow's", ""


def _bytes(case: Case) -> int:
    side = SeedConfig.preset(case.options["preset"]).image_size
    return case.shape["images"] * (len(jpeg(case.options["width"], case.options["height"])) + 3 * side**2)


def _case(preset: str, width: int, height: int, images: int, batch: int, dtype: str, **settings: Any) -> Case:
    options = {"preset": preset, "width": width, "height": height, "batch": batch}
    name = f"{preset}, {width} x {height}" + (f", {dtype}" if dtype != "float32" else "")
    devices = ("cpu",) if dtype == "float32" else ("cuda",)
    return Case(name, {"images": images}, dtype, devices=devices, options=options, **{"rounds": 3} | settings)


LOADER = Benchmark(
    op="loader",
    cases=(
        _case("seed-tiny", 640, 480, 16, 16, "float32", quick=True, rounds=1),
        _case("seed-2", 640, 480, 16, 1, "float32"),
        _case("seed-2", 2048, 1536, 16, 1, "float32", full=True),
        _case("seed-2", 640, 480, 64, 64, "float16"),
        _case("seed-2", 2048, 1536, 64, 64, "float16"),
    ),
    providers=(
        *map(_loader, WORKERS),
        Provider(PEER, lambda inputs, case: DataLoaderStream(case, inputs["pixels"].device, workers=1)),
        Provider(MODEL, lambda inputs, case: ModelAlone(inputs["pixels"], case), ours=True),
    ),
    baseline=PEER,
    bars=(
        Bar("the loader sustains more than the model", "seed-2, 640 x 480", ours(1), (MODEL,), 1),
        *(
            Bar(
                "the loader sustains more than the model",
                "seed-2, 640 x 480, float16",
                ours(workers),
                (MODEL,),
                1,
                device="cuda",
            )
            for workers in (8, 16)
        ),
        Bar("ahead of DataLoader", "seed-2, 640 x 480", ours(1), (PEER,), 1),
    ),
    inputs=_inputs,
    truth=lambda inputs, case: inputs["pixels"],
    check=check,
    flops=lambda case: 0,
    bytes=_bytes,
    memory_cases=(),
)
