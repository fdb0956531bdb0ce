"""`seed-fast caption` and `seed-fast draw`: the command lines. Light: torch is imported when one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

LanguageModel = Annotated[
    Path, typer.Option("--lm", help="Language model with image words, or its adapter, as a folder or hub id.")
]
Base = Annotated[
    Optional[Path],  # noqa: UP045 - typer evaluates it on Python 3.10
    typer.Option(help="The adapter's base, as a folder or hub id, if it isn't where the adapter says."),
]
Output = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--output", "-o", help="The file to write. Default: standard output."),
]
Beams = Annotated[int, typer.Option(min=1, help="Sequences to follow at once. 1: greedy.")]
TopP = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="Sample among the likeliest tokens that together have this probability. Official: 0.5."),
]
Temperature = Annotated[float, typer.Option(help="Of sampling.")]
Seed = Annotated[int, typer.Option(help="Of sampling, and of pictures.")]
AnyTokenizer = Annotated[
    bool,
    typer.Option(
        "--any-tokenizer", help="Go on although the language model learned the codes of another tokenizer than --model."
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts at a time.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16: of the language model.")]


def caption(
    lm: LanguageModel,
    inputs: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="[INPUTS]...", help="Images, folders, globs, tar shards: as for tokenize."),
    ] = None,
    codes: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Instead of images: lines of seed-fast tokenize or draw."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Tokenizer of the images: seed-tiny, a folder, or a hub id.")
    ] = "seed-tiny",
    output: Output = None,
    base: Base = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a caption.")] = 64,
    beams: Beams = 1,
    top_p: TopP = None,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    any_tokenizer: AnyTokenizer = False,
    batch_size: BatchSize = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and decode images. 0: none.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Say what images show: one JSON line {"path", "text"} for each.

    \b
    Examples:
      seed-fast caption photos/ --lm ./seed-opt --model ./seed-2 -o captions.jsonl
      seed-fast caption --codes codes.jsonl --lm ./seed-opt --beams 5

    \b
    Exit codes:
      0    every image has its caption
      1    it failed
      2    the command was wrong
      3    done, but some images or inputs were bad
    """
    given = dict(locals())
    from seed_fast.generate import command

    raise typer.Exit(command.caption(command.CaptionOptions(**_shared(given))))


def draw(
    lm: LanguageModel,
    texts: Annotated[Optional[list[str]], typer.Argument(metavar="[TEXTS]...", help="Captions.")] = None,  # noqa: UP045
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--file", help="A file of captions, one per line, or of JSON lines with a text."),
    ] = None,
    output: Output = None,
    pictures: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Also write pictures, 000000.png and so on, to this folder; needs --decoder and diffusers."),
    ] = None,
    decoder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Diffusion model, as a folder or hub id: Stable unCLIP 2.1 for SEED-2, Stable Diffusion for SEED-1."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of denoising.")] = 20,
    model: Annotated[
        str, typer.Option(help="Tokenizer of the codes, for pictures: seed-tiny, a folder, or a hub id.")
    ] = "seed-tiny",
    num_codes: Annotated[int, typer.Option(min=1, help="Codes of an image.")] = 32,
    base: Base = None,
    beams: Beams = 1,
    top_p: TopP = None,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    any_tokenizer: AnyTokenizer = False,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Draw what texts say: one JSON line {"text", "codes"} for each, and pictures if asked for.

    Every answer is a whole image: the model may write codes alone until it is.

    \b
    Examples:
      seed-fast draw "a small red star on a white background" --lm ./seed-opt
      seed-fast draw --file captions.txt --lm ./seed-opt --beams 4 -o codes.jsonl
      seed-fast draw "a cat" --lm ./seed-opt --model ./seed-2 --pictures out/ --decoder ./stable-diffusion-2-1-unclip

    \b
    Exit codes:
      0    every text has its codes
      1    it failed
      2    the command was wrong
    """
    given = dict(locals())
    from seed_fast.generate import command

    raise typer.Exit(command.draw(command.DrawOptions(**_shared(given))))


def _shared(given: dict[str, Any]) -> dict[str, Any]:
    """Lists as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
