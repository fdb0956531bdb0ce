"""`seed-fast reconstruct`: images to codes, and back to images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seed_fast._files import write_beside
from seed_fast._terminal import ProgressBar
from seed_fast._text import printable
from seed_fast.cli._checks import device_option, folder_option, same_run, tokenizer_option
from seed_fast.cli._options import AsJson, Device, Dtype, command
from seed_fast.cli._pictures import (
    DECODER_HELP,
    PictureModel,
    PictureOptions,
    check_pictures,
    locked_pictures,
    model_beside,
    open_picture_folder,
    rendering_option,
)
from seed_fast.cli._run import EXIT_SKIPPED, UsageError

if TYPE_CHECKING:
    import numpy as np

    from seed_fast.generate.picture_files import PictureToDraw
    from seed_fast.model.tokenizer import SeedTokenizer


@dataclass(frozen=True, kw_only=True)
class ReconstructOptions(PictureOptions):
    """Options of `seed-fast reconstruct`."""

    inputs: Annotated[
        tuple[str, ...],
        typer.Argument(metavar="INPUTS...", help="Images, folders, globs and tar shards, as for tokenize."),
    ]
    decoder: Annotated[Path, typer.Option(help=DECODER_HELP)]
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for 000000.png and so on, and sheet.png.")
    ]
    model: PictureModel = None
    device: Device = "auto"
    dtype: Dtype = "float32"
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that are encoded and denoised together.")] = 8
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and decode images. 0: none.")] = 0
    sheet: Annotated[
        int, typer.Option(min=0, help="The most images on the contact sheet: the first ones. 0: make no sheet.")
    ] = 64
    seed: Annotated[int, typer.Option(help="Seed of the noise of the first picture; the others count up from it.")] = 0
    as_json: AsJson = False


@command(stopped="pictures that are done are kept, go on with --resume")
def reconstruct(options: ReconstructOptions) -> int:
    """Turn images into codes, and the codes into images again.

    Writes a picture for each image, which carries its codes (draw --codes reads them), and a contact sheet: each image,
    its codes, and the picture drawn from them.

    \b
    Examples:
      seed-fast reconstruct photos/ -o again/ --model ./seed-2 --decoder ./stable-diffusion-2-1-unclip
      seed-fast reconstruct 'photos/*.jpg' -o again/ --model ./seed-1 --decoder ./stable-diffusion-v1-4 --steps 25

    \b
    Exit codes:
      0    every image has its picture
      1    it failed
      2    the command was wrong; nothing was done
      3    done, but some images or inputs were bad
      130  interrupted (143: terminated); go on with --resume
    """
    from seed_fast.data.shards import names_anything

    # Check everything that can be wrong with the command before anything is loaded.
    if not any(map(names_anything, options.inputs)):
        raise UsageError(f"no such file or folder: {', '.join(options.inputs)}")
    folder = folder_option("--output", options.output)
    for name in options.inputs:
        if Path(name).is_dir() and folder.resolve().is_relative_to(Path(name).resolve()):
            raise UsageError(f"--output must lie outside the inputs, got {folder} in {name}")
    check_pictures(options, folder)
    rendering_option(options)
    device = device_option(options.device)
    options = replace(options, model=model_beside(options.model, options.decoder))
    tok = tokenizer_option(str(options.model), device, options.dtype, random_weights=None)
    pictures = open_picture_folder(
        options, folder, options.decoder, tok, seed=options.seed, batch_size=options.batch_size
    )

    from PIL import Image

    from seed_fast.data.counting import Counting
    from seed_fast.generate.picture_files import SHEET, contact_sheet, encode_png

    progress = ProgressBar()
    counting = Counting(options.inputs)
    bad = drawn = 0

    def skip(line: str) -> None:
        nonlocal bad
        bad += 1
        progress.line(f"seed-fast: skipped: {line}")

    # Draw batch by batch; the first images stay in memory for the sheet, which is written last.
    rows: list[tuple[Image.Image, list[int], Image.Image]] = []
    seen: dict[int, np.ndarray] = {}
    try:
        with locked_pictures(options, folder), same_run():
            for picture in pictures.draw(_sources(options, tok, skip, seen)):
                drawn += 1
                if (pixels := seen.pop(picture.source.number, None)) is not None and len(rows) < options.sheet:
                    rows.append((Image.fromarray(pixels), picture.source.record["codes"], picture.picture))
                progress.advance(1)
                if counting.total:
                    progress.expect(counting.total - bad)
            if not (bad or drawn):
                raise UsageError(f"no image found in {', '.join(options.inputs)}")
            if rows:
                write_beside(folder / SHEET, encode_png(contact_sheet(rows), {"images": [each[1] for each in rows]}))
    finally:
        progress.close()
        counting.close()

    exit_code = EXIT_SKIPPED if bad else 0
    result = folder / SHEET if rows else folder
    about = {"output": str(folder), "sheet": str(folder / SHEET) if rows else None, "pictures": drawn, "skipped": bad}
    print(json.dumps(about | {"exit_code": exit_code}) if options.as_json else printable(str(result)), flush=True)
    return exit_code


def _sources(
    options: ReconstructOptions, tok: SeedTokenizer, skip: Callable[[str], None], seen: dict[int, np.ndarray]
) -> Iterator[PictureToDraw]:
    """Yield what each picture is drawn from; `seen` gets the images that may come onto the sheet, by number."""
    from seed_fast.generate.batches import batched
    from seed_fast.generate.images import encode_images
    from seed_fast.generate.picture_files import PictureToDraw

    images = encode_images(tok, options.inputs, batch_size=options.batch_size, workers=options.workers, on_problem=skip)
    begun = 0
    for batch in batched(images, options.batch_size):
        for image, embedding in zip(batch, tok.decode([image.codes for image in batch]), strict=True):
            if begun < options.sheet and image.pixels is not None:
                seen[image.place] = image.pixels
            begun += 1
            yield PictureToDraw(image.place, embedding, {"path": image.path, "codes": image.codes})
