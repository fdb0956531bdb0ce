"""A whole profile: measured, put together, written down."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from seed_fast import info
from seed_fast._files import write_beside
from seed_fast.model.fast import FastTokenizer
from seed_fast.model.tokenizer import SeedTokenizer
from seed_fast.profile.analysis import analyse
from seed_fast.profile.ceilings import ceilings, gemm_peak
from seed_fast.profile.cost import costs
from seed_fast.profile.measure import Encoding, measure, write_trace
from seed_fast.profile.text import render

SCHEMA = 1
PHOTO_SIZE = (640, 480)  # px; about what image-text data sets hold
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
) -> dict[str, Any]:
    """Measure where the time of encoding goes.

    Args:
        tok: a `SeedTokenizer`, or the plan that its `fast` made.
        model: what the result calls it.
        batch_size: images per batch.
        image: bytes of the image file that every image of the batch is; default: a generated JPEG of 640 x 480 px.
        rounds: batches that are timed; default: what fits into some seconds.
        quick: measure the ceilings with smaller matrices.
        trace: file for a Chrome trace of one more batch.

    Returns:
        What profile.json holds; docs/profile.md lists the fields.

    Raises:
        ImageError: `image` is none that can be used.
        OSError: the trace cannot be written.

    Example:
        >>> from seed_fast import SeedTokenizer
        >>> found = profile(SeedTokenizer.from_pretrained("seed-tiny"), batch_size=1, rounds=1, quick=True)
        >>> [stage["name"] for stage in found["stages"] if stage["part_of"] is None]
        ['decode+resize', 'normalise', 'ViT', 'Q-Former', 'nearest code']
    """
    file = photo() if image is None else image
    device, dtype = str(tok.device), str(tok.dtype).removeprefix("torch.")
    encoding = Encoding(tok, [file] * batch_size)
    load = os.getloadavg()[0]
    reached = ceilings(device, quick)
    reached.setdefault(f"gemm_{dtype}_gflops", gemm_peak(device, tok.dtype, 512))
    samples = measure(encoding, rounds)
    again = ceilings(device, quick)  # the higher counts: a ceiling met in a noisy moment is none
    reached = {name: max(value, again.get(name, 0.0)) for name, value in reached.items()}
    if trace is not None:
        write_trace(encoding, trace)
    fast = isinstance(tok, FastTokenizer)
    cost = costs(tok.config, batch_size, dtype, _form(tok))
    found = info.collect()
    return {
        "schema": SCHEMA,
        "model": model,
        "plan": "fast" if fast else "plain",
        "cross_attention": _form(tok) if fast else None,
        "dtype": dtype,
        "device": device,
        "batch_size": batch_size,
        "rounds": len(samples.wall),
        "image_bytes": len(file),
        "threads": torch.get_num_threads(),
        "load_before": round(load, 2),
        "time": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "versions": found["versions"],
        "devices": found["devices"],
        "ceilings": reached,
        **analyse(samples, cost, reached, batch_size),
    }


def _form(tok: SeedTokenizer | FastTokenizer) -> str:
    if not isinstance(tok, FastTokenizer):
        return "plain"
    return "absorbed" if tok.qformer.absorbed else "projected"


def photo() -> bytes:
    """A JPEG with the frequencies of a photograph: smooth noise of several scales, the coarser the stronger."""
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
    """Write profile.json, profile.txt and profile.png, each beside and renamed.

    Returns:
        (what was written, why something was not or "").

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
