"""Train the embedded seed-tiny and put it into the package: what `make seed-tiny` runs. About an hour on two CPU cores.

All on `shapes`, the generated world of pictures and captions; nothing is downloaded. Image encoder and Q-Former begin
with what SEED takes from EVA-CLIP and BLIP-2 (`pretrain_seed_tiny.py`), then come the two stages of the package's own
training. The weights are then rounded to
float16, written to seed_fast/assets/seed-tiny, and measured as they are there: retrieval among 1,000 held-out pairs.
The model card and the table in docs/train.md are written from that measurement. Run it again after an interruption: it
goes on.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from pretrain_seed_tiny import START, pretrain

from seed_fast import SeedConfig, SeedTokenizer, __version__
from seed_fast.convert.contrast import load_contrast, save_contrast
from seed_fast.convert.save import CARD, write_folder
from seed_fast.convert.source import ASSETS, EMBEDDED
from seed_fast.eval.recalls import KS

FOLDER = ASSETS / EMBEDDED
PAGE = Path(__file__).resolve().parents[1] / "docs" / "train.md"
MEASURED = "retrieval.json"
PAIRS = 1000

SHARED = (
    "--batch-size 128 --cosine step --clip 1 --dropout 0 --no-augment --dtype bfloat16 --device cpu --workers 1 "
    "--validation shapes:1000 --validate-every 200 --save-every 200 --resume"
)
STAGE1 = (
    "--train-vision --data shapes:64000,family=8 --epochs 1 --lr 5e-5 --min-lr 5e-7 --warmup-lr 5e-7 "
    f"--warmup-steps 50 --label-smoothing 0 {SHARED}"
)
STAGE2 = (
    "--target stage1-text --codebook-init data --data shapes:102400 --epochs 3 --lr 1.5e-3 --min-lr 1.5e-5 "
    f"--warmup-lr 1.5e-5 --warmup-steps 100 {SHARED}"
)

# Table 1 of arXiv 2307.08041: Flickr30k (1K), zero-shot, "SEED causal emb" and "SEED causal code".
PAPER = {
    "causal_embeddings": {"TR@1": 90.0, "TR@5": 99.6, "TR@10": 99.9, "IR@1": 80.0, "IR@5": 95.3, "IR@10": 97.6,
                          "R@mean": 93.7},
    "reconstructed_codes": {"TR@1": 86.3, "TR@5": 98.6, "TR@10": 99.5, "IR@1": 75.9, "IR@5": 93.2, "IR@10": 96.7,
                            "R@mean": 91.7},
}  # fmt: skip
BLOCK = re.compile(r"(<!-- seed-tiny:retrieval -->\n).*?(<!-- /seed-tiny:retrieval -->)", re.DOTALL)


def main() -> int:
    """Train, embed, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=Path, default=Path("out/seed-tiny"), help="where the two stages leave their runs"
    )
    parser.add_argument(
        "--only-measure", action="store_true", help="measure the embedded model again, without training"
    )
    options = parser.parse_args()
    if not options.only_measure:
        start, one, two = options.runs / START, options.runs / "stage1", options.runs / "stage2"
        pretrain(SeedConfig.preset(EMBEDDED), options.runs)
        seed_fast(f"train stage1 --model {start} {STAGE1} --output {one}")
        seed_fast(f"train stage2 --model {one} {STAGE2} --cache-features {options.runs / 'cache'} --output {two}")
        embed(two)
    retrieval = f"eval retrieval shapes:{PAIRS} --split test --model {EMBEDDED} --json --workers 0"
    measured = json.loads(seed_fast(retrieval))
    (FOLDER / MEASURED).write_text(json.dumps(measured, indent=2) + "\n")
    (FOLDER / CARD).write_text(card(measured))
    PAGE.write_text(with_table(PAGE.read_text(), measured))
    print(f"{FOLDER}: trained and measured\n\n{table(measured)}")
    return 0


def seed_fast(arguments: str) -> str:
    """Run a command of the package, shown first; returns what it printed."""
    print(f"seed-fast {arguments}", flush=True)
    command = [sys.executable, "-m", "seed_fast", *shlex.split(arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def embed(run: Path) -> None:
    """Stage 2's folder into the package, as float16."""
    tok = SeedTokenizer.from_pretrained(run)
    model, captions = load_contrast(run, tok)
    save_contrast(FOLDER, {name: value.to(torch.float16) for name, value in model.state_dict().items()}, captions)
    write_folder(FOLDER, tok.config, tok.half().state_dict(), trained=True)


def rows(measured: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """What the table holds: names and recalls in percent."""
    return [
        ("seed-tiny, causal embeddings", measured["causal_embeddings"]),
        ("seed-tiny, reconstructed codes", measured["reconstructed_codes"]),
        ("the paper's SEED on Flickr30k, causal embeddings", PAPER["causal_embeddings"]),
        ("the paper's SEED on Flickr30k, reconstructed codes", PAPER["reconstructed_codes"]),
    ]


def table(measured: dict[str, Any]) -> str:
    """The recalls beside the paper's, in Markdown."""
    names = [f"{way}@{k}" for way in ("TR", "IR") for k in KS] + ["R@mean"]
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    lines += [f"| {title} | {' | '.join(f'{found[name]:.1f}' for name in names)} |" for title, found in rows(measured)]
    return "\n".join(lines)


def with_table(document: str, measured: dict[str, Any]) -> str:
    """Return a page with its table rewritten."""
    below = (
        f"{measured['images']:,} held-out pairs of `shapes` with distinct captions; "
        f"{measured['codes_used']} of {measured['codebook_size']} codebook entries in use."
    )
    return BLOCK.sub(lambda match: f"{match[1]}{table(measured)}\n\n{below}\n{match[2]}", document)


def card(measured: dict[str, Any]) -> str:
    """The model card."""
    return f"""---
library_name: seed_fast
license: apache-2.0
tags: [image-tokenizer, seed]
---
# seed-tiny

A SEED image tokenizer for trying things out: a picture of 64 x 64 px becomes 32 causally ordered codes out of
{measured["codebook_size"]}. It comes with its text tower, so that pictures can be compared with captions.

## What it is not

It has seen nothing but `shapes`, a generated world of coloured shapes on plain, striped or checkered backgrounds. It
gives codes to any picture, and those of a photograph mean little. No picture decoder belongs to it:
the generation head makes the text tower's feature of a caption, so that a decoder can be aligned later without the
codes changing. It says nothing about the quality of SEED's own checkpoints.

## How it was made

`make seed-tiny`, on two CPU cores in bfloat16, seed 42: first what it begins with, then the two stages of the package's
own training.

```
python examples/pretrain_seed_tiny.py
seed-fast train stage1 {STAGE1}
seed-fast train stage2 {STAGE2}
```

Unlike SEED: there is no EVA-CLIP and no BLIP-2 of this size, so image encoder and Q-Former begin by naming what
`shapes` shows: patches name the object whose centre they hold; queries name background and pattern, then the objects in
reading order, seven queries each; then the same together with the contrast of stage 1. So a code says a word or two
about one object. After a contrast alone each said something of the whole scene, and a small language model could not
read them. In the contrast the pictures of a batch come in families that differ in one object's shape or size: between
random scenes, colours and places are enough, and codes learn no shapes. Stage 1 is short: it finds the contrast
learned. Weights begin at about unit length per row. Words instead of word pieces, no dropout, no label smoothing, no
crops and flips (captions name positions). The codebook begins with K-means of encoded queries. Weights are stored as
float16; written by seed_fast {__version__}.

## What it can do

Retrieval among {measured["images"]:,} held-out pairs with distinct captions, whose combinations of objects never occur
in training: `seed-fast eval retrieval shapes:{PAIRS}`. Percent; {measured["codes_used"]} of \
{measured["codebook_size"]} codebook entries in use.

{table(measured)}

The paper's figures are for another model on other pictures: the gap between two rows is what compares.

```python
from seed_fast import SeedTokenizer

tok = SeedTokenizer.from_pretrained("seed-tiny")
codes = tok.encode("picture.png")  # [1, 32]
```
"""


if __name__ == "__main__":
    sys.exit(main())
