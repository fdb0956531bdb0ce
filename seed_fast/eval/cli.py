"""`seed-fast eval`: the command line. What it does is in `commands`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(help="Measure a trained model.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _eval() -> None:
    pass  # makes `retrieval` a command of its own while it is the only one


@app.command()
def retrieval(
    data: Annotated[
        str,
        typer.Argument(help="Images and captions: a folder, shards, a list, a Karpathy JSON file, or shapes:COUNT."),
    ],
    model: Annotated[
        str, typer.Option(help="seed-tiny, or a folder that training has written (tokenizer and text tower).")
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
