"""Tokenising many images: listed, decoded, encoded and recorded in order, resumable, with the time of each stage."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

import torch

from seed_fast.data.codes import no_codes
from seed_fast.data.counting import Counting
from seed_fast.data.decode import Decoded, ImageDecoder
from seed_fast.data.image_processor import ImageProcessor
from seed_fast.data.journal import OutputError
from seed_fast.data.progress import ProgressReporter
from seed_fast.data.shards import WHOLE, Entry, Split, list_entries, names_anything
from seed_fast.data.staging import Fetched, Staging, fetch, link_to
from seed_fast.data.writers import Writer
from seed_fast.model.encoder import ImageEncoder, codes_of
from seed_fast.model.fast import FastTokenizer
from seed_fast.profiling import Stage, StageTimer


class NoImages(ValueError):
    """The inputs hold no image at all."""


@dataclass(frozen=True)
class Job:
    """Inputs of a run and how to go through them. Neither `batch_size` nor `workers` changes a code."""

    inputs: tuple[str, ...]
    batch_size: int = 32  # images per forward pass
    workers: int = 0  # decoding processes; 0: this one decodes
    split: Split = WHOLE
    resume: bool = False
    overwrite: bool = True  # where it doesn't resume: drop what an earlier run has left


@dataclass
class TokenizeSummary:
    """Counts and times of a run; `to_dict` gives them ready for JSON."""

    written: int = 0  # images encoded and recorded by this run
    resumed: int = 0  # images recorded before
    skipped: int = 0  # images that gave no codes, each named
    bad_inputs: int = 0  # shards, folders and globs that could not be listed to their end
    seconds: float = 0.0  # wall time, without loading the model
    plan: str = "plain"  # "fast" (the inference plan) or "plain" (the modules)
    waiting_seconds: float = 0.0  # part of `seconds` in which this process waited for workers
    stages: list[Stage] = field(default_factory=list)

    @property
    def left_out(self) -> int:
        """Number of images and inputs that this run could not use."""
        return self.skipped + self.bad_inputs

    @property
    def images_per_second(self) -> float:
        """Images encoded by this run per second of wall time."""
        return self.written / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the rate, ready for JSON."""
        own = asdict(self) | {"stages": [stage._asdict() for stage in self.stages]}
        return own | {"images_per_second": self.images_per_second}


def describe_run(tok: ImageEncoder, model: str, weights: str, processor: ImageProcessor, job: Job) -> dict[str, Any]:
    """Return what a resumed run must share with the first one: all on which codes and the order of images depend."""
    return {
        "model": model,
        "weights": weights,
        "plan": plan_of(tok),
        "dtype": str(tok.dtype).removeprefix("torch."),
        "image_size": processor.image_size,
        "resize": processor.resize,
        "shard": str(job.split),
        "inputs": list(job.inputs),
    }


def plan_of(tok: ImageEncoder) -> str:
    """Return "fast" for an inference plan, "plain" for the modules."""
    return "fast" if isinstance(tok, FastTokenizer) else "plain"


def tokenize(
    tok: ImageEncoder,
    job: Job,
    processor: ImageProcessor,
    writer: Writer,
    model: str,
    progress: ProgressReporter,
    weights: str,
) -> TokenizeSummary:
    """Encode every image of `job.inputs` and record the codes with `writer`.

    Images that can't be used are named and counted. Any exception, also an interruption, leaves what `writer` needs to
    go on with `job.resume`.

    Args:
        tok: the model on its device, or its inference plan.
        job: inputs and options.
        processor: resizes images; its `image_size` must be the model's.
        writer: takes the codes; opened, finished and closed here.
        model: name of the model in the description of the run.
        progress: receives a line for each skipped image, and the number of images done.
        weights: fingerprint of the weights: a resumed run must have the same.

    Raises:
        NoImages: no input is there, or none holds an image.
        OSError: no input could be listed, or the output can't be written.
        OutputError: the output belongs to another run or another process.
        WorkerDied: a decoding process was killed.
    """
    # Counts and times of the run, and the stages as the closing table shows them.
    start = time.perf_counter()
    summary = TokenizeSummary(plan=plan_of(tok))
    host = "workers" if job.workers else "main"
    stages = {"list": "main", "read": host, "decode+resize": host, "normalise": "device", "ViT": "device"}
    timer = StageTimer(stages | {"Q-Former": "device", "nearest code": "device", "write": "main"}, tok.device)

    def bad_input(line: str) -> None:
        summary.bad_inputs += 1
        progress.line(f"bad input: {line}")

    def skip(line: str) -> None:
        summary.skipped += 1
        progress.line(f"skipped: {line}")

    # Find the first image before anything is made or dropped.
    if not any(map(names_anything, job.inputs)):
        raise NoImages(f"no such file or folder: {', '.join(job.inputs)}")
    listing = list_entries(job.inputs, bad_input)
    first = next(listing, None)
    if first is None:  # nothing has been made or dropped yet
        names = ", ".join(job.inputs)
        raise (
            OSError(f"no image could be read from {names}")
            if summary.bad_inputs
            else NoImages(f"no image found in {names}")
        )
    # Open the output, pass over what it holds already, and encode the rest.
    entries = job.split.take(chain([first] if first else [], listing))
    counting = Counting(job.inputs, job.split)
    try:
        output, run = writer.output, describe_run(tok, model, weights, processor, job)
        writer.open(run, resume=job.resume, overwrite=job.overwrite)
        if writer.complete:
            progress.line(f"{output}: finished by an earlier run, whose model and options are not recorded")
        elif writer.unchecked:
            progress.line(f"{output}: begun by an earlier run, whose model and options are not recorded any more")
        if job.resume:
            entries = unrecorded(entries, writer.recorded(), summary)
        if writer.complete:
            for entry in entries:
                skip(f"{entry.path}: not in {output}, which an earlier run has finished without it")
        else:
            timed = _timed(entries, timer)
            _encode_all(tok, job, processor, timed, writer, timer, summary, skip, progress, counting)
        writer.finish()
    finally:
        writer.close()
        counting.close()
    summary.stages = timer.stages()
    summary.seconds = time.perf_counter() - start
    return summary


def unrecorded(entries: Iterable[Entry], recorded: Iterable[str], summary: TokenizeSummary) -> Iterator[Entry]:
    """Yield the entries whose paths were not recorded yet, in order.

    Both streams have the same order, except that images skipped by one run and usable in a later one were recorded
    late. So memory holds only the images that were skipped before; they are tried again, first.

    Raises:
        OutputError: a recorded path is not among the entries.
    """
    entries = iter(entries)
    waiting: dict[str, list[Entry]] = {}
    for path in recorded:
        while path not in waiting:
            entry = next(entries, None)
            if entry is None:
                raise OutputError(f"{path} was recorded by an earlier run, but is not among the inputs any more")
            waiting.setdefault(entry.path, []).append(entry)
        summary.resumed += 1
        waiting[path].pop(0)
        if not waiting[path]:
            del waiting[path]
    yield from chain.from_iterable(waiting.values())
    yield from entries


class Launched(NamedTuple):
    """A batch whose codes are being computed."""

    images: list[Decoded]
    codes: Fetched  # [B, N] int64


def _encode_all(
    tok: ImageEncoder,
    job: Job,
    processor: ImageProcessor,
    entries: Iterator[Entry],
    writer: Writer,
    timer: StageTimer,
    summary: TokenizeSummary,
    skip: Callable[[str], None],
    progress: ProgressReporter,
    counting: Counting,
) -> None:
    """Encode and record all entries; a GPU gets its next batch before the codes of the last one are waited for."""

    def usable(images: Iterable[Decoded]) -> Iterator[Decoded]:
        for image in images:
            timer.add("read", image.read_seconds)
            timer.add("decode+resize", image.decode_seconds)
            if image.error is None:
                yield image
            else:
                skip(image.error)

    def record(batch: Launched) -> None:
        codes = batch.codes.numpy()
        timer.resolve(wait=False)
        has_codes = codes[:, 0] >= 0
        paths = []
        for image, good in zip(batch.images, has_codes.tolist(), strict=True):
            if good:
                paths.append(image.path)
            else:
                skip(no_codes(image.path, tok))
        with timer.measure("write"):
            writer.append(paths, codes[has_codes])
        summary.written += len(paths)
        progress.advance(len(paths))
        if counting.total is not None:
            progress.expect(counting.total - summary.resumed - summary.skipped)

    # While one batch is computed, the next is decoded, copied and launched.
    link = link_to(tok.device)
    staging = Staging(link, job.batch_size, processor.image_size)
    launched: deque[Launched] = deque()
    with ImageDecoder(processor, job.workers, ahead=2 * job.batch_size) as decoder:
        images = usable(decoder.map(entries))
        while batch := list(islice(images, job.batch_size)):
            codes = encode(tok, processor, staging, batch, timer)
            launched.append(Launched(batch, fetch(codes, link)))
            if len(launched) > link.ahead:
                record(launched.popleft())
        while launched:
            record(launched.popleft())
        timer.resolve()
        summary.waiting_seconds = decoder.waiting_seconds


@torch.inference_mode()
def encode(
    tok: ImageEncoder, processor: ImageProcessor, staging: Staging, images: list[Decoded], timer: StageTimer
) -> torch.Tensor:
    """Return the codes [B, N] int64 of decoded images, on the device; -1 for an image without codes (`codes_of`)."""
    sent = staging.send([image.pixels for image in images if image.pixels is not None])
    with timer.measure("normalise"), staging.received(sent) as pixels:
        normalised = processor.normalize(pixels)
    with timer.measure("ViT"):
        features = tok.image_features(normalised)
    with timer.measure("Q-Former"):
        causal = tok.query_embeddings(features)
    with timer.measure("nearest code"):
        return codes_of(tok, causal)


def _timed(entries: Iterable[Entry], timer: StageTimer) -> Iterator[Entry]:
    """Yield the entries, and count the time of finding each one as "list"."""
    entries = iter(entries)
    while True:
        with timer.measure("list"):
            entry = next(entries, None)
        if entry is None:
            return
        yield entry
