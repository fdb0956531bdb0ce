"""Measure shapes-sd: how well its pictures of held-out scenes show what they should, read from their pixels alone.

Four ways to a picture: the true one, as a test of the reader; the scene's canonical caption through the pipeline's text
encoder; the picture's codes by seed-tiny, through the aligned generator; and codes that seed-opt-tiny wrote for the
scene's own caption. The plain diffusers pipeline draws. Writes drawn.json and the model card beside the pipeline.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from train_shapes_sd import FOLDER, SIDE, WHOLE, canonical_caption

from seed_fast import SeedTokenizer, __version__
from seed_fast._files import write_beside
from seed_fast.data import shapes
from seed_fast.eval.drawn_shapes import judge_drawings
from seed_fast.generate.drawing import draw
from seed_fast.generate.pictures import TOKENIZER_FOLDER
from seed_fast.lm.model import load

RESULTS, CARD = "drawn.json", "README.md"
LANGUAGE_MODEL = FOLDER.parent / "seed-opt-tiny"
SCENES = {"seed": 11, "split": "test"}  # whose combinations of objects occur in no training
BATCH = 25
STEPS, GUIDANCE = 10, 2.0
# What the pictures have to reach, in percent.
BARS = {
    "codes": {"colour": 90.0, "shape": 80.0, "position": 80.0},
    "caption to codes": {"colour": 85.0, "shape": 75.0},
}


def open_pipeline(folder: Path) -> Any:
    """Load the folder with plain diffusers, in float32."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline: Any, features: Callable[[int, int], Tensor], count: int, about: str) -> Iterator[np.ndarray]:
    """Yield `count` pictures, uint8 [64, 64, 3], each from its own noise.

    Args:
        pipeline: a StableDiffusionPipeline.
        features: text features [end - begin, 48, 128] of the pictures from `begin` up to `end`.
        count: number of pictures.
        about: what the progress bar says.
    """
    for begin in tqdm(range(0, count, BATCH), desc=about, unit_scale=BATCH, unit="picture"):
        end = min(begin + BATCH, count)
        noise = [torch.Generator().manual_seed(index) for index in range(begin, end)]
        settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "generator": noise}
        images = pipeline(prompt_embeds=features(begin, end), output_type="np", **settings).images
        yield from (images * 255).round().astype(np.uint8)


def captions_to_features(pipeline: Any, captions: Sequence[str]) -> Tensor:
    """Return the features [B, 48, 128] of captions, as the pipeline itself makes them."""
    features: Tensor = pipeline.encode_prompt(list(captions), "cpu", 1, False)[0]
    return features


def measure(folder: Path, count: int) -> dict[str, Any]:
    """Return the results for `count` held-out scenes."""
    scenes = [shapes.scene(SCENES["seed"], index, SCENES["split"]) for index in range(count)]
    pictures = [shapes.render(scene, SIDE) for scene in scenes]
    pipeline = open_pipeline(folder)
    tok = SeedTokenizer.from_pretrained(folder / TOKENIZER_FOLDER, dtype=torch.float32)
    codes = torch.cat([tok.encode(pictures[at : at + BATCH]) for at in range(0, count, BATCH)])
    written = draw(*load(LANGUAGE_MODEL), [shapes.caption(scene) for scene in scenes])
    ways: dict[str, Callable[[int, int], Tensor]] = {
        "codes": lambda begin, end: tok.decode(codes[begin:end]).clone(),
        "caption to codes": lambda begin, end: tok.decode(written[begin:end]).clone(),
        "caption": lambda begin, end: captions_to_features(
            pipeline, [canonical_caption(scene) for scene in scenes[begin:end]]
        ),
    }
    results = {"true pictures": judge_drawings(scenes, pictures).to_dict()}
    for way, features in ways.items():
        with torch.inference_mode():
            results[way] = judge_drawings(scenes, drawn(pipeline, features, count, way)).to_dict()
        print(way, results[way], flush=True)
    return {
        "provenance": {
            "seed_fast": __version__, "torch": torch.__version__, "machine": platform.machine(),
            "command": "python examples/measure_shapes_sd.py", "scenes": SCENES | {"count": count},
            "steps": STEPS, "guidance": GUIDANCE,
        },
        "bars": BARS,
        "results": results,
    }  # fmt: skip


def table(measured: dict[str, Any]) -> str:
    """Return the results in Markdown."""
    results = measured["results"]
    names = {
        "true pictures": "the true pictures: the reader's own error",
        "caption": "canonical caption -> picture",
        "codes": "picture -> codes -> picture",
        "caption to codes": "caption -> codes (seed-opt-tiny) -> picture",
    }
    columns = ("colour", "shape", "size", "position", "relation", "count")
    lines = [
        f"| % right, {results['codes']['pictures']} held-out pictures | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for way, name in names.items():
        lines.append(f"| {name} | " + " | ".join(f"{results[way][column]:.1f}" for column in columns) + " |")
    return "\n".join(lines)


def verdict(measured: dict[str, Any]) -> str:
    """Return which bars are reached and which aren't, as a sentence."""
    short = [
        f"{name} of {way} {measured['results'][way][name]:.1f} % (bar {bar:.0f} %)"
        for way, bars in measured["bars"].items()
        for name, bar in bars.items()
        if measured["results"][way][name] < bar
    ]
    return f"Not reached yet: {', '.join(short)}." if short else "All bars of drawn.json are reached."


def card(measured: dict[str, Any]) -> str:
    """Return the model card."""
    about = measured["provenance"]
    return f"""---
library_name: diffusers
pipeline_tag: text-to-image
license: apache-2.0
tags: [seed, stable-diffusion, text-to-image]
---
# shapes-sd

A Stable Diffusion in small that draws `shapes`, a generated world of coloured shapes, at 64 px: a plain
`StableDiffusionPipeline` folder in float16. In `image_tokenizer/` lies seed-tiny with another generator, which turns
its 32 codes into this pipeline's text features, so that the pipeline draws codes of pictures.

## What it is not

It knows {len(shapes.SHAPES)} shapes, {len(shapes.COLOURS)} colours, {len(shapes.SIZES)} sizes and the words of their
captions. It is no small version of a released Stable Diffusion, and says nothing about the quality of SEED's pictures.
Its VAE is an `AutoencoderTiny`. The committed UNet is trained far too little: it seldom draws what a caption says, and
so seldom what codes say.

## How it was made

`make shapes-sd`, from {WHOLE.pictures:,} pictures that neither seed-tiny nor seed-opt-tiny has seen. The text encoder
learned to name what a caption puts where ({WHOLE.text:,} steps), the autoencoder to reconstruct
({WHOLE.autoencoder:,}), the UNet to draw by the frozen text features ({WHOLE.diffusion:,}). Then the generator of codes
alone was trained by mean squared error towards the features of each picture's canonical caption
({WHOLE.alignment:,}), as SEED-1 is aligned to Stable Diffusion v1.4: codes are seed-tiny's, and the UNet has never seen
any. The committed weights were made with changes on the way: the first 100 steps of the UNet had batches of 64 instead
of 32, and the learning rate of the last stage was planned for 3,000 steps at first. Written by
seed_fast {about["seed_fast"]}.

## What it can do

`python examples/measure_shapes_sd.py`: {about["steps"]} steps of DDIM, guidance {about["guidance"]:g}; no
combination of objects that it is judged by occurs in training. `shapes.read` finds objects in the pixels alone.
Colour, shape and size are those of what is drawn at an object's place; position is the cell of the 3 x 3 grid where the
likest object lies; relation is the side (left, right, above, below) on which one object lies of another; count is the
number of objects in a picture.

{table(measured)}

{verdict(measured)}

```python
from diffusers import StableDiffusionPipeline
from seed_fast import SeedTokenizer

pipeline = StableDiffusionPipeline.from_pretrained("examples/shapes-sd")
tok = SeedTokenizer.from_pretrained("examples/shapes-sd/{TOKENIZER_FOLDER}")
features = tok.decode(tok.encode("picture.png"))
pipeline(prompt_embeds=features, num_inference_steps={STEPS}, guidance_scale={GUIDANCE:g}).images[0].save("again.png")
```
"""


def main() -> int:
    """Measure the committed folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the pipeline's folder")
    parser.add_argument("--pictures", type=int, default=500, help="number of held-out pictures")
    options = parser.parse_args()
    measured = measure(options.folder, options.pictures)
    write_beside(options.folder / RESULTS, (json.dumps(measured, indent=1) + "\n").encode())
    write_beside(options.folder / CARD, card(measured).encode())
    print(table(measured))
    print(verdict(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
