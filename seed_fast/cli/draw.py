"""`seed-fast draw`: captions, or codes, to pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seed_fast._outputs import STDOUT
from seed_fast._terminal import ProgressBar
from seed_fast.cli._checks import (
    device_option,
    file_option,
    folder_option,
    input_file_option,
    same_run,
    tokenizer_option,
)
from seed_fast.cli._json_lines import json_lines
from seed_fast.cli._language_model import SamplingOptions, check_same_tokenizer, load_language_model, strategy_option
from seed_fast.cli._options import command
from seed_fast.cli._pictures import (
    DECODER_HELP,
    PictureModel,
    PictureOptions,
    check_pictures,
    first_codes,
    locked_pictures,
    model_beside,
    open_picture_folder,
    rendering_option,
)
from seed_fast.cli._run import EXIT_SKIPPED, UsageError

if TYPE_CHECKING:
    import torch

    from seed_fast.generate.images import EncodedImage
    from seed_fast.generate.picture_files import PictureFolder, PictureToDraw
    from seed_fast.model.tokenizer import SeedTokenizer


@dataclass(frozen=True, kw_only=True)
class DrawOptions(PictureOptions, SamplingOptions):
    """Options of `seed-fast draw`."""

    texts: Annotated[tuple[str, ...], typer.Argument(metavar="TEXTS", help="Captions of the images to draw.")] = ()
    file: Annotated[
        Path | None, typer.Option(help='Read captions from a file: one per line, or JSON lines with a "text".')
    ] = None
    codes: Annotated[
        Path | None,
        typer.Option(
            help="Draw codes instead of captions, without a language model: JSON lines of tokenize or draw, or a "
            "picture that draw or reconstruct has written."
        ),
    ] = None
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write. -: standard output.")] = STDOUT
    pictures: Annotated[
        Path | None,
        typer.Option(help="Also write pictures, 000000.png and so on, to this folder; needs --decoder and diffusers."),
    ] = None
    decoder: Annotated[Path | None, typer.Option(help=DECODER_HELP)] = None
    lm: Annotated[
        Path | None,  # codes need none
        typer.Option(
            "--lm", help="Language model with image tokens, or its adapter: a folder or a hub id. Captions need it."
        ),
    ] = None  # type: ignore[assignment]
    model: PictureModel = None  # type: ignore[assignment]  # the one beside the decoder
    num_codes: Annotated[
        int | None, typer.Option(min=1, help="Codes of an image. Default: 32, or what the tokenizer has.")
    ] = None
    picture_batch: Annotated[
        int, typer.Option(min=1, help="Pictures that are denoised together. Fewer need less memory.")
    ] = 8
    prefix: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="With --codes: keep so many first codes of each image. The rest comes from --other, and without it is "
            "left open (the mean of all code embeddings).",
        ),
    ] = None
    other: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --codes: a file whose first image is the other one, for --prefix or --frames.",
        ),
    ] = None
    frames: Annotated[
        int | None,
        typer.Option(min=2, help="With --codes: draw so many pictures that lead from each image to --other."),
    ] = None
    set: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar="PLACE=CODE", help="With --codes: change the code at a place, counted from 0. Repeatable."
        ),
    ] = ()
    seed: Annotated[int, typer.Option(help="Seed of the random numbers for sampling and for pictures.")] = 0


@command(stopped="pictures that are done are kept, go on with --resume", memory="lower --batch-size or --picture-batch")
def draw(options: DrawOptions) -> int:
    """Draw images for captions, or codes: write one JSON line {"text", "codes"} for each, and pictures if asked for.

    Decoding is constrained: every caption gets exactly one whole image. Pictures carry their codes for --codes.

    \b
    Examples:
      seed-fast draw "a small red star on a white background" --lm ./seed-opt
      seed-fast draw --file captions.txt --lm ./seed-opt --beams 4 -o codes.jsonl
      seed-fast draw "a cat" --lm ./seed-opt --model ./seed-2 --pictures out/ --decoder ./stable-diffusion-2-1-unclip
      seed-fast draw --codes codes.jsonl --model ./seed-2 --pictures out/ --decoder ./stable-diffusion-2-1-unclip
      seed-fast draw --codes cat.png --set 5=123 --pictures out/ --decoder ./unclip
      seed-fast draw --codes cat.png --prefix 8 --other dog.png --pictures out/ --decoder ./unclip
      seed-fast draw --codes cat.png --frames 5 --other dog.png --pictures out/ --decoder ./unclip

    \b
    Exit codes:
      0    every caption has its codes, every image its picture
      1    it failed
      2    the command was wrong
      3    done, but some lines of --codes were bad
      130  interrupted (143: terminated); go on with --resume
    """
    # Check everything that can be wrong with the command before anything is loaded.
    if options.codes is None and bool(options.texts) == (options.file is not None):
        raise UsageError("draw: give texts, or --file FILE, and not both")
    if options.codes is not None and (options.texts or options.file is not None):
        raise UsageError("draw: give captions, or --codes FILE, and not both")
    if (options.pictures is None) != (options.decoder is None):
        raise UsageError("draw: --pictures FOLDER and --decoder FOLDER belong together")
    if options.codes is not None:
        changes = _check_edits(options)
    elif options.lm is None:
        raise UsageError("draw: captions need --lm FOLDER, the language model that writes their codes")
    elif options.set or not (options.prefix is options.other is options.frames is None):
        raise UsageError("draw: --prefix, --other, --frames and --set need --codes FILE")
    rendering_option(options)
    output = file_option("--output", options.output)
    folder = None
    if options.pictures is not None:
        folder = folder_option("--pictures", options.pictures)
        check_pictures(options, folder)
    options = replace(options, model=model_beside(options.model, options.decoder))
    if options.codes is not None:
        return _draw_codes(options, output, changes)
    return _draw_captions(options, output, folder)


def _draw_captions(options: DrawOptions, output: Path, folder: Path | None) -> int:
    texts = options.texts if options.file is None else _captions(options.file)
    strategy = strategy_option(options)
    device = device_option(options.device)

    # The diffusion model is opened first: a wrong one must not cost minutes of generation.
    from seed_fast.generate.drawing import draw_stream
    from seed_fast.generate.picture_files import PictureToDraw

    pictures = tok = None
    num_codes = options.num_codes or 32
    if folder is not None:
        tok, pictures = _open(options, device)
        num_codes = tok.config.num_codes
    lm = load_language_model(options, device)
    if tok is not None:
        check_same_tokenizer(options, lm, tok)

    progress = ProgressBar(total=len(texts))
    begun = 0
    try:
        locked = nullcontext() if folder is None else locked_pictures(options, folder)
        with locked, same_run(), json_lines(output, progress) as write:
            for batch, codes in draw_stream(
                lm, texts, strategy=strategy, batch_size=options.batch_size, num_codes=num_codes
            ):
                records = [{"text": text, "codes": row} for text, row in zip(batch, codes.tolist(), strict=True)]
                for record in records:
                    write(record)
                if pictures is not None and tok is not None:
                    embeddings = tok.decode(codes)
                    sources = [PictureToDraw(begun + row, embeddings[row], each) for row, each in enumerate(records)]
                    for _ in pictures.draw(sources):
                        progress.advance(1)
                else:
                    progress.advance(len(batch))
                begun += len(batch)
    finally:
        progress.close()
    return 0


def _draw_codes(options: DrawOptions, output: Path, changes: dict[int, int]) -> int:
    from seed_fast.generate.images import read_codes

    assert options.codes is not None  # `draw` has checked it
    assert options.pictures is not None
    folder = folder_option("--pictures", options.pictures)
    device = device_option(options.device)
    tok, pictures = _open(options, device)
    _check_changes(changes, tok)
    other = None if options.other is None else first_codes(options.other, tok)
    if options.prefix is not None and options.prefix > tok.config.num_codes:
        raise UsageError(
            f"--prefix must be at most {tok.config.num_codes}, the codes of an image, got {options.prefix}"
        )

    progress = ProgressBar()
    bad = drawn = 0

    def skip(line: str) -> None:
        nonlocal bad
        bad += 1
        progress.line(f"seed-fast: skipped: {line}")

    images = read_codes(options.codes, tok.config.codebook_size, num_codes=tok.config.num_codes, on_problem=skip)
    try:
        with locked_pictures(options, folder), same_run(), json_lines(output, progress) as write:
            for picture in pictures.draw(_edited(options, tok, images, changes, other)):
                write(picture.source.record)
                drawn += 1
                progress.advance(1)
            if not (bad or drawn):  # before the output gets its name
                raise UsageError(f"{options.codes}: must hold the codes of an image, got none")
    finally:
        progress.close()
    return EXIT_SKIPPED if bad else 0


def _edited(
    options: DrawOptions, tok: SeedTokenizer, images: Iterator[EncodedImage], changes: dict[int, int], other: Any
) -> Iterator[PictureToDraw]:
    """Yield what each picture of --codes is drawn from, after the edits that the options ask for."""
    from seed_fast.generate.editing import decode_prefix, interpolate, join_codes, set_codes
    from seed_fast.generate.picture_files import PictureToDraw

    for image in images:
        codes = set_codes(image.codes, changes)
        record: dict[str, Any] = {"path": image.path}
        if options.frames is not None:
            ends = tok.decode([codes, other])
            for frame, embedding in enumerate(interpolate(ends[0], ends[1], options.frames)):
                about = record | {"codes": codes, "other": other, "frame": frame, "frames": options.frames}
                yield PictureToDraw(image.place * options.frames + frame, embedding, about, image.place)
        elif options.prefix is not None and other is None:
            (embedding,) = decode_prefix(tok, [codes], options.prefix)
            yield PictureToDraw(image.place, embedding, record | {"codes": codes, "prefix": options.prefix})
        else:
            if options.prefix is not None:
                codes = join_codes(codes, other, options.prefix)
            yield PictureToDraw(image.place, tok.decode([codes])[0], record | {"codes": codes})


def _open(options: DrawOptions, device: torch.device) -> tuple[SeedTokenizer, PictureFolder]:
    """Return the tokenizer, and the folder of pictures with its diffusion model."""
    assert options.pictures is not None  # `draw` has checked it
    assert options.decoder is not None
    tok = tokenizer_option(str(options.model), device, random_weights=None)
    if options.num_codes not in (None, tok.config.num_codes):
        raise UsageError(
            f"--num-codes must be {tok.config.num_codes}, as --model {options.model} has, got {options.num_codes}"
        )
    folder = folder_option("--pictures", options.pictures)
    pictures = open_picture_folder(
        options, folder, options.decoder, tok, seed=options.seed, batch_size=options.picture_batch
    )
    return tok, pictures


def _check_edits(options: DrawOptions) -> dict[int, int]:
    """Check the options that go with --codes; return the changes of --set, place to code."""
    assert options.codes is not None
    if options.pictures is None:
        raise UsageError("draw: --codes needs --pictures FOLDER and --decoder FOLDER")
    if options.lm is not None:
        raise UsageError("draw: --codes needs no language model, got --lm")
    if options.frames is not None and options.prefix is not None:
        raise UsageError("draw: give --frames or --prefix, and not both")
    if options.frames is not None and options.other is None:
        raise UsageError("draw: --frames needs --other FILE, the image that it leads to")
    if options.other is not None and options.frames is options.prefix is None:
        raise UsageError("draw: --other needs --prefix N or --frames N")
    input_file_option(options.codes)
    changes = {}
    for text in options.set:
        place, equals, code = text.partition("=")
        if not (equals and place.isdecimal() and code.isdecimal()):
            raise UsageError(f"--set must be PLACE=CODE, such as 5=123, got {text!r}")
        changes[int(place)] = int(code)
    return changes


def _check_changes(changes: dict[int, int], tok: SeedTokenizer) -> None:
    """Refuse changes of places and codes that the tokenizer doesn't have."""
    places, size = tok.config.num_codes, tok.config.codebook_size
    for place, code in changes.items():
        if place >= places or code >= size:
            raise UsageError(f"--set must be 0..{places - 1}=0..{size - 1}, got {place}={code}")


def _captions(path: Path) -> tuple[str, ...]:
    """Return the captions of --file."""
    from seed_fast.generate.lines import read_captions

    input_file_option(path)
    texts = read_captions(path)
    if not texts:
        raise UsageError(f"{path}: must hold a caption, got none")
    return tuple(texts)
