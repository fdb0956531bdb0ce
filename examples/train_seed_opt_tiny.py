"""Train seed-opt-tiny, a small OPT that sees and draws `shapes`: what `make seed-opt-tiny` runs.

Pictures of the generated world become codes of the embedded seed-tiny, once; a language model of a few layers, with a
vocabulary of whole words and of codes, learns from nothing to caption and to draw them. Nothing is downloaded. The
result is written to examples/seed-opt-tiny as a plain transformers folder in float16, and measured as it is there: on
held-out pictures, whose combinations of objects never occur in training. The model card and the table of docs/lm.md are
written from that measurement. Run it again after an interruption: it goes on.

`--quick` goes through all of it in minutes, learns little, and leaves everything in its run folder.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from seed_fast import __version__
from seed_fast._files import replace_folder_files
from seed_fast.convert.save import CARD
from seed_fast.data import shapes
from seed_fast.data.tokens import TokensWriter, open_tokens
from seed_fast.eval.language_model import shuffled_order
from seed_fast.eval.results import FIGURE, RESULTS
from seed_fast.lm.image_tokenizer import read_identity, write_identity
from seed_fast.lm.model import load
from seed_fast.lm.words import word_tokenizer

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "seed-opt-tiny"
PAGE, PLOT = ROOT / "docs" / "lm.md", ROOT / "docs" / "figures" / "seed-opt-tiny-perplexity.svg"
BLOCK = re.compile(r"(<!-- seed-opt-tiny -->\n).*?(<!-- /seed-opt-tiny -->)", re.DOTALL)
LARGEST = 8_000_000  # bytes that the repository takes

PICTURES = 200  # that it is judged by
POSITIONS = 96  # the longest caption, its picture and the prompt are 81 tokens
SHAPE = {"num_hidden_layers": 4, "hidden_size": 192, "ffn_dim": 768, "num_attention_heads": 6}
# Another seed than seed-tiny was trained with: its codes of pictures it has learned by heart would be too good.
DATA = "shapes:{count},seed=1"
BUILD = "--batch-size 256 --resume"
TRAIN = (
    "--full --tasks caption:1,drawing:1 --lr 2e-3 --min-lr 2e-5 --warmup-steps 200 --length 1024 --batch-size 4 "
    "--accumulate 1 --dtype bfloat16 --device cpu --validate-every 500 --save-every 500 --log-every 20 --resume"
)


class Effort(NamedTuple):
    """How much of everything."""

    pictures: int
    steps: int


WHOLE, QUICK = Effort(pictures=120_000, steps=5000), Effort(pictures=10_000, steps=300)


def main() -> int:
    """Tokenise, train, write, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("out/seed-opt-tiny"), help="where codes and runs are left")
    parser.add_argument("--tokenizer", default="seed-tiny", help="whose codes: seed-tiny, or a trained folder")
    parser.add_argument("--quick", action="store_true", help="a look in minutes; the committed folder stays as it is")
    parser.add_argument("--shuffled", action="store_true", help="also train on codes in another order, to compare")
    parser.add_argument("--only-measure", action="store_true", help="measure the committed folder again, and no more")
    options = parser.parse_args()
    effort = QUICK if options.quick else WHOLE
    runs = options.runs / "quick" if options.quick else options.runs
    folder = runs / "seed-opt-tiny" if options.quick else FOLDER
    if not options.only_measure:
        for name, count, split in (("train", effort.pictures, "train"), ("val", 1000, "val")):
            data = DATA.format(count=count)
            seed_fast(f"tokens build {data} -o {runs / name} --split {split} --model {options.tokenizer} {BUILD}")
        write_base(runs / "base")
        train(runs, "run", effort)
        if options.shuffled:
            for name in ("train", "val"):
                write_shuffled(runs / name, runs / f"{name}-shuffled")
            train(runs, "run-shuffled", effort)
        write_half(runs / "run", folder)
    against = f"--shuffled-lm {runs / 'run-shuffled'}" if (runs / "run-shuffled" / "config.json").is_file() else ""
    measure = f"eval lm shapes:{PICTURES} --lm {folder} --model {options.tokenizer} --split test {against}"
    print(seed_fast(f"{measure} -o {runs / 'report'}"))
    measured = json.loads((runs / "report" / RESULTS).read_text()) | {"lm": FOLDER.name}
    (folder / RESULTS).write_text(json.dumps(measured, indent=1) + "\n")
    (folder / CARD).write_text(card(measured, effort))
    if not options.quick:
        shutil.copyfile(runs / "report" / FIGURE, PLOT)
        PAGE.write_text(with_table(PAGE.read_text(), measured))
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e6:.1f} MB")
    if size > LARGEST:
        sys.exit(f"{folder}: must be at most {LARGEST / 1e6:.0f} MB to be committed, got {size / 1e6:.1f} MB")
    return 0


def seed_fast(arguments: str) -> str:
    """Run a command of the package, shown first; returns what it printed."""
    print(f"seed-fast {arguments}", flush=True)
    command = [sys.executable, "-m", "seed_fast", *shlex.split(arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def write_base(folder: Path) -> None:
    """What `train lm --full` begins with: sizes, and a tokenizer of the world's words. Weights are drawn by it."""
    from transformers import OPTConfig

    tokenizer = word_tokenizer((shapes.caption(shapes.scene(1, index)) for index in range(20_000)), POSITIONS)
    config = OPTConfig(
        vocab_size=len(tokenizer), word_embed_proj_dim=SHAPE["hidden_size"], max_position_embeddings=POSITIONS,
        dropout=0.0, attention_dropout=0.0, bos_token_id=2, eos_token_id=2, pad_token_id=1,
        init_std=SHAPE["hidden_size"] ** -0.5, **SHAPE,  # OPT's own 0.02 is for rows of thousands of numbers
    )  # fmt: skip
    with replace_folder_files(folder) as staging:
        tokenizer.save_pretrained(staging)
        config.save_pretrained(staging)


def train(runs: Path, name: str, effort: Effort) -> None:
    """Run `seed-fast train lm`, on codes in the order that the name of the run says."""
    order = name.removeprefix("run")
    data = f"--data {runs / f'train{order}'} --validation {runs / f'val{order}'}"
    seed_fast(f"train lm {data} --model {runs / 'base'} --steps {effort.steps} {TRAIN} -o {runs / name}")


def write_shuffled(store: Path, target: Path) -> None:
    """A copy of a store with the codes of every picture in the other order of `seed-fast eval lm`."""
    source = open_tokens(store)
    writer = TokensWriter(target, source.tokenizer)
    about = {"shuffled": str(store), "samples": len(source)}
    writer.open(about, resume=bool(writer.leftovers()))
    order = shuffled_order(source.tokenizer.codes_per_image)
    if not writer.complete:
        for begin in range(writer.next_place, len(source), 1000):
            places = range(begin, min(begin + 1000, len(source)))
            writer.append(
                [{**source[place], "codes": source[place]["codes"][order]} for place in places], next_place=places.stop
            )
        writer.finish()
    writer.close()


def write_half(run: Path, folder: Path) -> None:
    """The trained model as float16, with its tokenizer."""
    model, tokenizer, _ = load(run)
    with replace_folder_files(folder) as staging:
        model.to(torch.float16).save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        if (identity := read_identity(run)) is not None:
            write_identity(staging, identity)


def table(measured: dict[str, Any]) -> str:
    """What was measured, in Markdown."""
    said, drawn, real = measured["captions"], measured["drawings"], measured["pictures_themselves"]
    greedy, sampled = (measured["whole_images"][way] for way in ("greedy", "sampled"))
    curves = {name: values["mean"] for name, values in measured["perplexity"].items()}
    lines = [
        f"| {measured['pictures']} held-out pictures and captions of `shapes` | |",
        "|---|---|",
        f"| captions with colour, shape and size of every object right | {said['objects']:.1f} % |",
        f"| captions right in all they say: positions, relations, background, pattern too | {said['exact']:.1f} % |",
        f"| drawings whose reconstruction retrieves its caption, R@1 | {drawn['TR@1']:.1f} % |",
        f"| the same of the pictures' own codes | {real['TR@1']:.1f} % |",
        f"| answers that are a whole image, with the constraint | {greedy['constrained']:.1f} % |",
        f"| without it | {greedy['free']:.1f} % |",
        f"| sampled at temperature 1, with the constraint | {sampled['constrained']:.1f} % |",
        f"| without it | {sampled['free']:.1f} % |",
        f"| perplexity of codes in causal order | {curves['causal']:.1f} |",
        f"| in another order, same model | {curves['shuffled']:.1f} |",
    ]
    if "shuffled, trained so" in curves:
        lines.append(f"| in another order, a model trained on it as long | {curves['shuffled, trained so']:.1f} |")
    return "\n".join(lines)


def with_table(document: str, measured: dict[str, Any]) -> str:
    """docs/lm.md with its table rewritten."""
    return BLOCK.sub(lambda match: f"{match[1]}{table(measured)}\n{match[2]}", document)


def card(measured: dict[str, Any], effort: Effort) -> str:
    """The model card."""
    return f"""---
library_name: transformers
license: apache-2.0
tags: [seed, image-captioning, text-to-image]
---
# seed-opt-tiny

A language model that sees and draws: OPT in small, {SHAPE["num_hidden_layers"]} layers of width \
{SHAPE["hidden_size"]}, whose vocabulary holds the codes of the image tokenizer seed-tiny as words. It captions
pictures of `shapes`, a generated world of coloured shapes, and draws captions of it, as 32 codes. A plain transformers
folder in float16.

## What it is not

It knows {len(shapes.SHAPES)} shapes, {len(shapes.COLOURS)} colours, {len(shapes.SIZES)} sizes and the words of their
captions, nothing else; every other word is unknown to it. It is no small version of a released OPT, and says nothing
about the quality of SEED-OPT: that is OPT-2.7B, frozen, with LoRA, while here every weight is trained from nothing. Its
codes are worth something together with the seed-tiny that they come from.

## How it was made

`make seed-opt-tiny`: {effort.pictures:,} pictures that seed-tiny has not seen,
`{DATA.format(count=effort.pictures)}`, then

```
seed-fast train lm --steps {effort.steps} {TRAIN}
```

in rows of 1024 tokens, to caption ("A photo of") and to draw ("Generate an image"). Written by seed_fast {__version__}.

## What it can do

`seed-fast eval lm --lm examples/seed-opt-tiny`; no combination of objects that it is judged by occurs in training.

{table(measured)}

```sh
seed-fast draw "a small red star at the top left on a white background" --lm examples/seed-opt-tiny
seed-fast caption picture.png --lm examples/seed-opt-tiny
```
"""


if __name__ == "__main__":
    sys.exit(main())
