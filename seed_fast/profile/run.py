"""Make a whole profile: measure, analyse, write the files."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from seed_fast import info
from seed_fast._files import write_beside
from seed_fast.model.config import SeedConfig
from seed_fast.model.fast import FastTokenizer
from seed_fast.model.tokenizer import SeedTokenizer
from seed_fast.profile.analysis import analyse
from seed_fast.profile.ceilings import ceilings, gemm_peak
from seed_fast.profile.cost import costs
from seed_fast.profile.measure import Encoding, Samples, affordable, measure, write_trace
from seed_fast.profile.text import render

SCHEMA = 1
SECONDS = 30.0  # for everything but loading the model and a trace
CEILINGS_AGAIN = 0.8  # ceilings are measured twice if at most this share of the seconds has passed
PHOTO_SIZE = (640, 480)  # px; a usual size in image-text data sets
NO_MATPLOTLIB = "profile.png needs matplotlib: pip install 'seed_fast[bench]'"


def profile(
    tok: SeedTokenizer | FastTokenizer,
    *,
    model: str = "",
    batch_size: int = 8,
    image: bytes | None = None,
    rounds: int | None = None,
    quick: bool = False,
    trace: Path | None = None,
    seconds: float = SECONDS,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure where the time of encoding goes.

    Args:
        tok: a `SeedTokenizer`, or the plan that its `fast` made.
        model: name of the model in the result.
        batch_size: images per batch.
        image: bytes of an image file, which is used for every image of the batch; default: a generated JPEG of 640 x
            480 px.
        rounds: number of batches to time, if `seconds` allow so many; default: as many as fit into some seconds.
        quick: measure the ceilings with smaller matrices.
        trace: file for a Chrome trace of one more batch.
        seconds: about how long to measure, s. Where a batch takes too long, a smaller one is measured; where one image
            takes too long, some of the ViT's blocks are, and their time is scaled up. "notes" in the result say so.
        say: called with one line of text at the start of each step.

    Returns:
        The content of profile.json; docs/profile.md lists the fields.

    Raises:
        ImageError: `image` can't be read as an image.
        OSError: the trace cannot be written.

    Examples:
        >>> from seed_fast import SeedTokenizer
        >>> found = profile(SeedTokenizer.from_pretrained("seed-tiny"), batch_size=1, rounds=1, quick=True)
        >>> [stage["name"] for stage in found["stages"] if stage["part_of"] is None]
        ['decode+resize', 'normalise', 'ViT', 'Q-Former', 'nearest code']
    """
    file = photo() if image is None else image
    device, dtype = str(tok.device), str(tok.dtype).removeprefix("torch.")
    load, end = os.getloadavg()[0], time.perf_counter() + seconds
    say("measuring what this machine reaches: matrix products, then copies")
    reached = ceilings(device, quick)
    reached.setdefault(f"gemm_{dtype}_gflops", gemm_peak(device, tok.dtype, 512))
    left = end - time.perf_counter()
    # One block predicts the time of a batch, so that a slow machine gets a smaller one.
    say("measuring a block of the ViT, to know how long a batch takes")
    encoding, predicted = affordable(Encoding(tok, [file] * batch_size), left)
    count = len(encoding.files)
    say(f"measuring batches of {count}" + (f", about {predicted * count / batch_size:.0f} s each" * (predicted > 5)))
    samples = measure(encoding, rounds, end - time.perf_counter())
    notes = _notes(samples, encoding, batch_size, rounds, predicted, seconds)
    if end - time.perf_counter() > (1 - CEILINGS_AGAIN) * seconds:
        say("measuring what this machine reaches once more")
        again = ceilings(device, quick)  # the higher value counts: other programs can only lower it
        reached = {name: max(value, again.get(name, 0.0)) for name, value in reached.items()}
    if trace is not None:
        say("tracing one batch")
        write_trace(encoding, trace)
    fast = isinstance(tok, FastTokenizer)
    cost = costs(tok.config, count, dtype, _form(tok))
    found = info.collect()
    return {
        "schema": SCHEMA,
        "model": model,
        "plan": "fast" if fast else "plain",
        "cross_attention": _form(tok) if fast else None,
        "dtype": dtype,
        "device": device,
        "batch_size": count,
        "rounds": len(samples.wall),
        "notes": notes,
        "image_bytes": len(file),
        "threads": torch.get_num_threads(),
        "load_before": round(load, 2),
        "time": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "versions": found["versions"],
        "devices": found["devices"],
        "ceilings": reached,
        **analyse(samples, cost, reached, count),
    }


def _notes(
    samples: Samples, encoding: Encoding, asked: int, rounds: int | None, predicted: float, seconds: float
) -> list[str]:
    """Return one sentence for every way in which the measurement differs from what was asked for, and why."""
    notes, count, done = [], len(encoding.files), len(samples.wall)
    if encoding.blocks < encoding.depth or count < asked:
        batch = f"A batch of {asked}" if asked > 1 else "One image"
        notes.append(f"{batch} takes about {predicted:.0f} s here, too long for a measurement of {seconds:.0f} s.")
    if count < asked:
        notes.append(f"Batches of {count} were measured.")
    if encoding.blocks < encoding.depth:
        notes.append(f"{encoding.blocks} of the ViT's {encoding.depth} blocks were measured, and count for the others.")
    if samples.warming_up:
        notes.append("The result is the first pass, which reads weights for the first time: no other one fitted.")
    elif rounds is not None and done < rounds:
        notes.append(f"{done} of {rounds} rounds fitted into {seconds:.0f} s.")
    return notes


def tokenizer_for_timing(config: SeedConfig, device: torch.device, dtype: torch.dtype) -> SeedTokenizer:
    """Return a tokenizer with quickly filled weights, for timing alone.

    Drawing the weights of seed-2 one by one takes half a minute, this a second. The encoder's weights have usual
    magnitudes, since times don't depend on their values. Its codes mean nothing, and the decoders are not initialised.
    """
    with torch.device("meta"):
        tok = SeedTokenizer(config, dtype=dtype)
    tok.to_empty(device=device)
    some = 0.02 * torch.randn(1 << 20, device=device)
    with torch.no_grad():
        for part in (tok.vit, tok.vision_norm, tok.qformer, tok.quantizer):
            for name, weight in part.named_parameters():
                if weight.ndim == 1:
                    weight.fill_(float(name.rpartition(".")[2] == "weight"))  # norms keep their scale
                else:
                    flat = weight.view(-1)
                    for at in range(0, len(flat), len(some)):
                        flat[at : at + len(some)] = some[: len(flat) - at]
    return tok.eval()


def _form(tok: SeedTokenizer | FastTokenizer) -> str:
    """Return which of `cost.PLANS` describes the tokenizer."""
    if not isinstance(tok, FastTokenizer):
        return "plain"
    return "absorbed" if tok.qformer.absorbed else "projected"


def photo() -> bytes:
    """Return a generated JPEG whose frequencies are like a photograph's: smooth noise of several scales."""
    generator = np.random.default_rng(0)
    width, height = PHOTO_SIZE
    values = np.full((height, width, 3), 128.0)
    for side, strength in ((4, 60), (16, 30), (64, 15), (256, 8)):
        coarse = generator.normal(0, 1, (side * 3 // 4, side, 3))
        for channel in range(3):
            layer = Image.fromarray(coarse[:, :, channel].astype(np.float32))
            values[:, :, channel] += strength * np.asarray(layer.resize(PHOTO_SIZE, Image.Resampling.BICUBIC))
    file = io.BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write(found: dict[str, Any], folder: Path) -> tuple[list[Path], str]:
    """Write profile.json, profile.txt and profile.png, each beside its place and then renamed.

    Returns:
        The paths of the files written, and why profile.png was not written, or "".

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "profile.json": (json.dumps(found, indent=1) + "\n").encode(),
        "profile.txt": (render(found) + "\n").encode(),
    }
    missing = ""
    try:
        from seed_fast.profile.figure import draw

        contents["profile.png"] = draw(found)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        missing = NO_MATPLOTLIB
    for name, content in contents.items():
        write_beside(folder / name, content)
    return [folder / name for name in contents], missing
