"""`seed-fast convert`: official checkpoints to a folder of this package, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from seed_fast._outputs import output_folder
from seed_fast._terminal import ProgressBar
from seed_fast._text import printable
from seed_fast.cli._checks import usage
from seed_fast.cli._options import DtypeName, command
from seed_fast.cli._run import UsageError


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of `seed-fast convert`."""

    paths: Annotated[
        tuple[str, ...],
        typer.Argument(
            metavar="SOURCE... DEST",
            help="A folder, a hub id, or official files (seed_quantizer.pt eva_vit_g.pth), then the folder to write.",
        ),
    ]
    preset: Annotated[
        str | None, typer.Option(help="seed-1, seed-2 or seed-2-rqf. Default: the one that the tensors' shapes show.")
    ] = None
    dtype: Annotated[
        DtypeName | None, typer.Option(help="Type in which to store weights. Default: each tensor keeps its own.")
    ] = None
    to_official: Annotated[
        bool,
        typer.Option(
            "--to-official", help="Convert the other way: write seed_quantizer.pt, eva_vit_g.pth and stage1.pth."
        ),
    ] = False


@command(memory="it takes about twice the largest tensor")
def convert(options: ConvertOptions) -> int:
    """Convert an official checkpoint to a folder that --model takes, or such a folder to official files.

    \b
    Examples:
      seed-fast convert seed_quantizer.pt eva_vit_g.pth ./seed-2
      seed-fast tokenize photos/ -o codes.jsonl --model ./seed-2
      seed-fast convert --to-official runs/stage2 ./official
    """
    if len(options.paths) < 2:
        raise UsageError("convert: expected SOURCE... DEST, got one path")
    *sources, destination = options.paths
    with usage():
        output_folder(Path(destination))

    # From a folder of this package to official files.
    if options.to_official:
        if len(sources) != 1 or options.preset or options.dtype:
            raise UsageError("convert: --to-official takes SOURCE DEST, and neither --preset nor --dtype")
        from seed_fast.convert.export import export_official

        print(printable(str(export_official(sources[0], destination))))
        return 0

    # From official files to a folder of this package.
    from seed_fast.convert import convert as convert_checkpoint

    bar, counted = ProgressBar(unit="bytes"), 0

    def progress(done: int, total: int) -> None:
        nonlocal counted
        bar.expect(total)
        bar.advance(done - counted)
        counted = done

    source = sources if len(sources) > 1 else sources[0]
    try:
        folder = convert_checkpoint(source, destination, preset=options.preset, dtype=options.dtype, progress=progress)
    finally:
        bar.close()
    print(printable(str(folder)))
    return 0
