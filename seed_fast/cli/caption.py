"""`seed-fast caption`: images, or codes, to text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seed_fast._outputs import STDOUT
from seed_fast._terminal import ProgressBar
from seed_fast.cli._checks import device_option, file_option, input_file_option, tokenizer_option
from seed_fast.cli._json_lines import json_lines
from seed_fast.cli._language_model import SamplingOptions, check_same_tokenizer, load_language_model, strategy_option
from seed_fast.cli._options import command
from seed_fast.cli._run import EXIT_SKIPPED, UsageError

if TYPE_CHECKING:
    import torch

    from seed_fast.generate.images import EncodedImage
    from seed_fast.lm.model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class CaptionOptions(SamplingOptions):
    """Options of `seed-fast caption`."""

    inputs: Annotated[
        tuple[str, ...],
        typer.Argument(metavar="INPUTS", help="Images, folders, globs and tar shards, as for tokenize."),
    ] = ()
    codes: Annotated[
        Path | None,
        typer.Option(
            help="Read codes from a file instead of images: lines of seed-fast tokenize or draw, or a picture drawn."
        ),
    ] = None
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write. -: standard output.")] = STDOUT
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens that a caption may have.")] = 64
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and decode images. 0: none.")] = 0


@command()
def caption(options: CaptionOptions) -> int:
    """Caption images: write one JSON line {"path", "text"} for each.

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
    from seed_fast.data.shards import names_anything

    # Check everything that can be wrong with the command before anything is loaded.
    if bool(options.inputs) == (options.codes is not None):
        raise UsageError("caption: give images, or --codes FILE, and not both")
    output = file_option("--output", options.output)
    if options.codes is not None:
        input_file_option(options.codes)
    elif not any(map(names_anything, options.inputs)):
        raise UsageError(f"no such file or folder: {', '.join(options.inputs)}")
    strategy = strategy_option(options)
    device = device_option(options.device)
    lm = load_language_model(options, device)

    from seed_fast.data.counting import Counting
    from seed_fast.generate.captioning import caption_stream

    progress = ProgressBar()
    bad = captioned = 0

    def skip(line: str) -> None:
        nonlocal bad
        bad += 1
        progress.line(f"seed-fast: skipped: {line}")

    # Caption batch by batch; the output gets its name when all is done.
    counting = Counting(options.inputs)
    try:
        images = _images(options, lm, device, skip)
        with json_lines(output, progress) as write:
            for batch in caption_stream(
                lm, images, strategy=strategy, batch_size=options.batch_size, max_tokens=options.max_tokens
            ):
                for image in batch:
                    write({"path": image.path, "text": image.text})
                captioned += len(batch)
                progress.advance(len(batch))
                if counting.total:
                    progress.expect(counting.total - bad)
            if not (bad or captioned):  # before the output gets its name
                raise UsageError(f"no image found in {', '.join(options.inputs or (str(options.codes),))}")
    finally:
        progress.close()
        counting.close()
    return EXIT_SKIPPED if bad else 0


def _images(
    options: CaptionOptions, lm: LanguageModel, device: torch.device, skip: Callable[[str], None]
) -> Iterable[EncodedImage]:
    """Return the images to caption: lines of --codes, or image files, which need the tokenizer."""
    from seed_fast.generate.images import encode_images, read_codes
    from seed_fast.lm.image_tokenizer import read_identity

    if options.codes is not None:
        learned = read_identity(options.lm)
        num_codes = learned.codes_per_image if learned is not None else None
        return read_codes(options.codes, lm.vocabulary.codebook_size, num_codes=num_codes, on_problem=skip)
    tok = tokenizer_option(options.model, device, random_weights=None)
    check_same_tokenizer(options, lm, tok)
    return encode_images(tok, options.inputs, batch_size=options.batch_size, workers=options.workers, on_problem=skip)
