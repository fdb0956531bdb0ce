"""`seed-fast tokens`: the command line. What it does is in `data.tokens.command`, which is imported when it runs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(
    help="Data sets as codes and text: tokenised once, read by every training.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Dtype(str, Enum):
    """In what the tokenizer computes."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Output = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="The store to make.")]
Images = Annotated[
    Optional[Path],  # noqa: UP045 - typer evaluates it on Python 3.10
    typer.Option(help="Where the relative paths of a list begin. Default: the folder of the list."),
]
Splits = Annotated[str, typer.Option(help="train, val or test: of a Karpathy file and of shapes.")]
Shard = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Part i/n of the work, such as 0/4, into the same folder. torchrun sets it by itself."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a killed run stopped, or start.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the closing summary as one JSON object.")]


@app.command()
def build(
    data: Annotated[
        str,
        typer.Argument(
            help="Pictures with captions: a folder, tar shards ('train-{000..099}.tar'), a list (.json, .jsonl, .tsv), "
            "or shapes:COUNT."
        ),
    ],
    output: Output,
    model: Annotated[
        str, typer.Option(help="seed-tiny (inside the package, for trying out), a folder, or a Hugging Face hub id.")
    ] = "seed-tiny",
    tokenizer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="What the store calls the model, as in `tokens import`. Default: --model as given."),
    ] = None,
    split: Splits = "train",
    images: Images = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[
        Dtype, typer.Option(help="float32 gives the official codes; the others are faster and may change some.")
    ] = Dtype.float32,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per forward pass. Doesn't change the codes.")] = 32,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Processes that read and decode. 0: none. Default: one per spare core, at most 8."),
    ] = None,
    shard: Shard = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="Use a preset (seed-2, ...) without weights: for measuring speed only."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Turn pictures with captions into a store of codes and captions.

    A bad picture or caption is skipped and named on stderr.

    \b
    Examples:
      seed-fast tokens build shapes:20000 -o shapes-codes
      seed-fast tokens build 'cc3m-{000..331}.tar' -o cc3m-codes --model ./seed-2 --device cuda --resume
      torchrun --nproc-per-node 8 --no-python seed-fast tokens build data/ -o codes --model ./seed-2

    \b
    Exit codes:
      0    every picture is stored
      1    the run failed
      2    the command was wrong; nothing was done
      3    done, but some pictures, captions or inputs were bad
      130  interrupted (143: terminated); go on with --resume
    """
    from seed_fast.data.tokens import command

    target = command.Target(output, shard, resume, overwrite, as_json)
    options = command.BuildOptions(
        data=data,
        target=target,
        model=model,
        split=split,
        images=images,
        device=device,
        dtype=dtype.value,
        batch_size=batch_size,
        workers=workers,
        random_weights=random_weights,
        tokenizer=tokenizer,
    )
    raise typer.Exit(command.build(options))


@app.command("import")
def import_(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUTS...",
            help="Official pre-tokenised tar shards; with --captions what `seed-fast tokenize` wrote (.jsonl, .npz).",
        ),
    ],
    output: Output,
    tokenizer: Annotated[
        str, typer.Option(help="Whose codes these are, such as seed-2: stores of two tokenizers can't be mixed.")
    ],
    captions: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The pictures' data set, as `tokens build` reads it; captions are found by path."),
    ] = None,
    split: Splits = "train",
    images: Images = None,
    codebook_size: Annotated[int, typer.Option(min=1, help="Codes are below it.")] = 8192,
    codes_per_image: Annotated[int, typer.Option(min=1)] = 32,
    shard: Shard = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Turn codes that exist already into a store.

    Official shards are pickles, which can run any code when they are loaded as usual. Here they can't: what is no dict,
    list, tuple, str, int, float, bool or None is refused. Such a member, or one that is damaged, is skipped and named.

    \b
    Examples:
      seed-fast tokens import 'cc3m/part-0000/*.tar' -o cc3m-codes --tokenizer seed-2
      seed-fast tokens import codes.jsonl --captions photos/captions.jsonl -o codes --tokenizer seed-2

    Exit codes are those of `tokens build`.
    """
    from seed_fast.data.tokens import command

    options = command.ImportOptions(
        inputs=tuple(inputs),
        target=command.Target(output, shard, resume, overwrite, as_json),
        tokenizer=tokenizer,
        captions=captions,
        split=split,
        images=images,
        codebook_size=codebook_size,
        codes_per_image=codes_per_image,
    )
    raise typer.Exit(command.import_(options))


@app.command()
def info(
    stores: Annotated[list[str], typer.Argument(metavar="STORES...", help="Folders of stores, taken as one.")],
    verify: Annotated[bool, typer.Option("--verify", help="Also read every sample.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Show what a store holds, and whose codes. Exit code 1 if it is unfinished or damaged, or tokenizers differ."""
    from seed_fast.data.tokens import command

    raise typer.Exit(command.info(stores, verify=verify, as_json=as_json))
