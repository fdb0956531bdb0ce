"""`seed-fast eval`: the command line. What it does is in `commands`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from seed_fast.generate.cli import AnyTokenizer

app = typer.Typer(help="Measure a trained model.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def retrieval(
    data: Annotated[
        str,
        typer.Argument(help="Images and captions: a folder, shards, a list, a Karpathy JSON file, or shapes:COUNT."),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="seed-tiny, or a folder that training has written (tokenizer and text tower), or its hub id."
        ),
    ] = "seed-tiny",
    split: Annotated[str, typer.Option(help="train, val or test: of a Karpathy file and of shapes.")] = "test",
    images: Annotated[
        Optional[Path],  # noqa: UP045 - typer evaluates it on Python 3.10
        typer.Option(help="Where the relative paths of a list begin. Default: the folder of the list."),
    ] = None,
    codes: Annotated[bool, typer.Option(help="Also measure reconstructed codes; needs stage 2.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 64,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Processes that read and decode. 0: none. Default: one per spare core, at most 8."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Zero-shot image-text retrieval: R@1, R@5, R@10 both ways and their mean.

    Once for the causal embeddings and once for what the decoder makes of the codes (Table 1 of the paper).

    \b
    Examples:
      seed-fast eval retrieval shapes:1000
      seed-fast eval retrieval dataset_flickr30k.json --images flickr30k-images/ --model ./run/final --json

    \b
    Exit codes:
      0    all pictures were used
      1    it failed
      2    the command was wrong
      3    done, but some pictures or captions were bad
    """
    from seed_fast import commands

    options = commands.RetrievalOptions(
        data=data,
        model=model,
        split=split,
        images=images,
        codes=codes,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        workers=workers,
        as_json=as_json,
    )
    raise typer.Exit(commands.eval_retrieval(options))


@app.command()
def lm(
    lm: Annotated[
        Path,
        typer.Option("--lm", help="Language model with image words, or its adapter, as a folder or hub id."),
    ],
    data: Annotated[
        str, typer.Argument(help="shapes:COUNT[,seed=N], whose pictures are known exactly.")
    ] = "shapes:200",
    model: Annotated[
        str,
        typer.Option(
            help="seed-tiny, or a folder that training has written (tokenizer and text tower), or its hub id."
        ),
    ] = "seed-tiny",
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    base: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The adapter's base, as a folder or hub id, if it isn't where the adapter says."),
    ] = None,
    shuffled_lm: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A model trained alike on codes in shuffled order, for the comparison of perplexities."),
    ] = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", metavar="FOLDER", help="Also write lm.json and perplexity.svg."),
    ] = None,
    beams: Annotated[int, typer.Option(min=1, help="Sequences to follow at once. 1: greedy.")] = 1,
    any_tokenizer: AnyTokenizer = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16: of the language model.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """What a language model sees and draws, on pictures of a generated world.

    Captions of held-out pictures that are right; drawings for held-out captions that retrieve them; whole images with
    and without the constraint; perplexity of codes, in causal and in shuffled order.

    \b
    Examples:
      seed-fast eval lm --lm examples/seed-opt-tiny
      seed-fast eval lm shapes:1000 --lm runs/lm --model runs/stage2 --beams 4 -o report/ --json
    """
    given = dict(locals())
    from seed_fast.eval import command

    raise typer.Exit(command.eval_lm(command.LmOptions(**given)))
