"""`seed-fast draw`: captions to codes, and to pictures."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seed_fast._files import locked_folder
from seed_fast._outputs import STDOUT
from seed_fast._terminal import ProgressBar
from seed_fast.cli._checks import device_option, file_option, folder_option, input_file_option, tokenizer_option
from seed_fast.cli._json_lines import json_lines
from seed_fast.cli._language_model import SamplingOptions, check_same_tokenizer, load_language_model, strategy_option
from seed_fast.cli._options import command
from seed_fast.cli._run import UsageError

if TYPE_CHECKING:
    from seed_fast.model.tokenizer import SeedTokenizer


@dataclass(frozen=True, kw_only=True)
class DrawOptions(SamplingOptions):
    """Options of `seed-fast draw`."""

    texts: Annotated[tuple[str, ...], typer.Argument(metavar="TEXTS", help="Captions of the images to draw.")] = ()
    file: Annotated[
        Path | None, typer.Option(help='Read captions from a file: one per line, or JSON lines with a "text".')
    ] = None
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write. -: standard output.")] = STDOUT
    pictures: Annotated[
        Path | None,
        typer.Option(help="Also write pictures, 000000.png and so on, to this folder; needs --decoder and diffusers."),
    ] = None
    decoder: Annotated[
        Path | None,
        typer.Option(
            help="Diffusion model that turns codes into pictures, as a folder or a hub id: "
            "Stable unCLIP 2.1 for SEED-2, Stable Diffusion for SEED-1."
        ),
    ] = None
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of the diffusion model.")] = 20
    num_codes: Annotated[int, typer.Option(min=1, help="Codes of an image.")] = 32
    seed: Annotated[int, typer.Option(help="Seed of the random numbers for sampling and for pictures.")] = 0


@command()
def draw(options: DrawOptions) -> int:
    """Draw images for captions: write one JSON line {"text", "codes"} for each, and pictures if asked for.

    Decoding is constrained: every caption gets exactly one whole image.

    \b
    Examples:
      seed-fast draw "a small red star on a white background" --lm ./seed-opt
      seed-fast draw --file captions.txt --lm ./seed-opt --beams 4 -o codes.jsonl
      seed-fast draw "a cat" --lm ./seed-opt --model ./seed-2 --pictures out/ --decoder ./stable-diffusion-2-1-unclip

    \b
    Exit codes:
      0    every caption has its codes
      1    it failed
      2    the command was wrong
    """
    # Check everything that can be wrong with the command before anything is loaded.
    if bool(options.texts) == (options.file is not None):
        raise UsageError("draw: give texts, or --file FILE, and not both")
    if (options.pictures is None) != (options.decoder is None):
        raise UsageError("draw: --pictures FOLDER and --decoder FOLDER belong together")
    output = file_option("--output", options.output)
    folder = None if options.pictures is None else folder_option("--pictures", options.pictures)
    texts = options.texts if options.file is None else _captions(options.file)
    strategy = strategy_option(options)
    device = device_option(options.device)

    # The diffusion model is opened first: a wrong one must not cost minutes of generation.
    from seed_fast.generate.drawing import draw_stream

    pictures = tok = None
    if folder is not None and options.decoder is not None:
        from seed_fast.generate import pictures as diffusion

        tok = tokenizer_option(options.model, device, random_weights=None)
        _check_num_codes(options, tok)
        pipeline = diffusion.open_pipeline(options.decoder, tok)
        pictures = diffusion.PictureFolder(folder, pipeline, tok, steps=options.steps, seed=options.seed)
    lm = load_language_model(options, device)
    if tok is not None:
        check_same_tokenizer(options, lm, tok)

    progress = ProgressBar(total=len(texts))
    try:
        with locked_folder(folder) if folder is not None else nullcontext(), json_lines(output, progress) as write:
            for batch, codes in draw_stream(
                lm, texts, strategy=strategy, batch_size=options.batch_size, num_codes=options.num_codes
            ):
                for text, row in zip(batch, codes.tolist(), strict=True):
                    write({"text": text, "codes": row})
                if pictures is not None:
                    pictures.add(codes)
                progress.advance(len(batch))
    finally:
        progress.close()
    return 0


def _captions(path: Path) -> tuple[str, ...]:
    """Return the captions of --file."""
    from seed_fast.generate.lines import read_captions

    input_file_option(path)
    texts = read_captions(path)
    if not texts:
        raise UsageError(f"{path}: must hold a caption, got none")
    return tuple(texts)


def _check_num_codes(options: DrawOptions, tok: SeedTokenizer) -> None:
    expected = tok.config.num_codes
    if options.num_codes != expected:
        raise UsageError(f"--num-codes must be {expected}, as --model {options.model} has, got {options.num_codes}")
