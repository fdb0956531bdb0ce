"""What `seed-fast caption` and `seed-fast draw` do: options to models, lines in, lines out."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seed_fast._extras import require
from seed_fast._files import locked_folder, open_locked, rename_locked, write_beside, writing
from seed_fast._outputs import STDOUT, output_file
from seed_fast._terminal import ProgressBar as Progress
from seed_fast._text import decode_text, parse_json, read_lines, shown
from seed_fast.cli._run import run
from seed_fast.commands import (
    DTYPES,
    EXIT_SKIPPED,
    UsageError,
    _complain,
    _device,
    _meant,
)
from seed_fast.data.counting import Counting

if TYPE_CHECKING:
    from seed_fast.generate.decoding import Decoding
    from seed_fast.lm.model import LanguageModel

Labelled = tuple[str, list[int]]  # the path of an image and its codes


@dataclass(frozen=True, kw_only=True)
class Options:
    """What commands with a language model take, as given."""

    lm: Path
    output: Path | None = None
    base: Path | None = None
    model: str = "seed-tiny"
    beams: int = 1
    top_p: float | None = None
    temperature: float = 1.0
    seed: int = 0
    any_tokenizer: bool = False
    batch_size: int = 64
    device: str = "auto"
    dtype: str = "float32"

    def decoding(self) -> Decoding:
        """How tokens are chosen."""
        from seed_fast.generate.decoding import Decoding

        try:
            return Decoding(self.beams, self.top_p, self.temperature, self.seed)
        except ValueError as error:
            raise UsageError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class CaptionOptions(Options):
    """The options of `seed-fast caption`, as given."""

    inputs: tuple[str, ...] | None = None
    codes: Path | None = None
    max_tokens: int = 64
    workers: int = 0


@dataclass(frozen=True, kw_only=True)
class DrawOptions(Options):
    """The options of `seed-fast draw`, as given."""

    texts: tuple[str, ...] | None = None
    file: Path | None = None
    pictures: Path | None = None
    decoder: Path | None = None
    steps: int = 20
    num_codes: int = 32


def caption(options: CaptionOptions) -> int:
    """Run `seed-fast caption`. Returns the exit code."""
    return run(lambda: _caption(options))


def draw(options: DrawOptions) -> int:
    """Run `seed-fast draw`. Returns the exit code."""
    return run(lambda: _draw(options))


def _caption(options: CaptionOptions) -> int:
    if bool(options.inputs) == (options.codes is not None):
        raise UsageError("caption: give images, or --codes FILE, and not both")
    _check_output(options)
    decoding = after_checks(options)
    speaker = language_model(options, options.lm)
    from seed_fast.generate.captioning import caption

    progress = Progress()
    counting = Counting(options.inputs or ())
    images = _Images(options, speaker, progress)
    try:
        with _lines(options.output, progress) as write:
            for number, batch in enumerate(_batches(images, options.batch_size)):
                texts = caption(
                    *speaker,
                    [codes for _, codes in batch],
                    max_tokens=options.max_tokens,
                    decoding=replace(decoding, seed=decoding.seed + number),
                    batch_size=options.batch_size,
                )
                for (path, _), text in zip(batch, texts, strict=True):
                    write({"path": path, "text": text})
                progress.advance(len(batch))
                if counting.total:
                    progress.expect(counting.total - images.bad)
            if not (images.bad or images.good):  # before the output gets its name
                raise UsageError(f"no image found in {', '.join(options.inputs or (str(options.codes),))}")
    finally:
        progress.close()
        counting.close()
    return EXIT_SKIPPED if images.bad else 0


def _draw(options: DrawOptions) -> int:
    if bool(options.texts) == (options.file is not None):
        raise UsageError("draw: give texts, or --file FILE, and not both")
    if (options.pictures is None) != (options.decoder is None):
        raise UsageError("draw: --pictures FOLDER and --decoder FOLDER belong together")
    _check_output(options)
    texts = list(options.texts or _texts_of(options.file))
    decoding = after_checks(options)
    painter = _Painter(options) if options.pictures is not None else None  # before minutes of generation
    speaker = language_model(options, options.lm)
    if painter is not None:
        check_tokenizer(options, speaker, painter.tok)
    from seed_fast.generate.drawing import draw

    progress = Progress(total=len(texts))
    try:
        alone = locked_folder(options.pictures) if options.pictures is not None else nullcontext()
        with alone, _lines(options.output, progress) as write:
            for number, batch in enumerate(_batches(texts, options.batch_size)):
                codes = draw(
                    *speaker,
                    batch,
                    num_codes=options.num_codes,
                    decoding=replace(decoding, seed=decoding.seed + number),
                    batch_size=options.batch_size,
                )
                for text, row in zip(batch, codes.tolist(), strict=True):
                    write({"text": text, "codes": row})
                if painter is not None:
                    painter(codes)
                progress.advance(len(batch))
    finally:
        progress.close()
    return 0


class _Images:
    """The images to describe, one after the other, as path and codes; bad ones are told and counted."""

    def __init__(self, options: CaptionOptions, speaker: LanguageModel, progress: Progress) -> None:
        self.options, self.speaker, self.progress = options, speaker, progress
        self.good = self.bad = 0

    def __iter__(self) -> Iterator[Labelled]:
        for labelled in self._of_codes() if self.options.codes else self._of_pictures():
            self.good += 1
            yield labelled

    def _of_codes(self) -> Iterator[Labelled]:
        from seed_fast.lm.identity import read_identity

        learned = read_identity(self.options.lm)
        expected = learned.codes_per_image if learned is not None else None
        for number, line in _lines_of(self.options.codes):
            name = f"{self.options.codes}:{number}"
            try:
                record = parse_json(line)
                if not isinstance(record, dict) or not isinstance(record.get("codes"), list):
                    raise ValueError(f"got {shown(record)}")
                codes = record["codes"]
                if any(type(code) is not int for code in codes):
                    raise ValueError(f"codes must be integers, got {shown(codes)}")
                if not codes or (expected is not None and len(codes) != expected):
                    raise ValueError(f"an image must have {expected or 'some'} codes, got {len(codes)}")
                self.speaker.vocabulary.image(codes)
            except ValueError as error:
                self._skip(f"{name}: expected a JSON line with codes: {error}")
                continue
            yield str(record.get("path", record.get("text", name))), codes

    def _of_pictures(self) -> Iterator[Labelled]:
        import numpy as np
        import torch

        from seed_fast.data.decode import Decoder
        from seed_fast.data.image_processor import ImageProcessor
        from seed_fast.data.shards import list_entries, names_anything

        tok = _tokenizer(self.options, self._say)
        check_tokenizer(self.options, self.speaker, tok, note=self._say)
        inputs = self.options.inputs or ()
        if not any(map(names_anything, inputs)):
            raise UsageError(f"no such file or folder: {', '.join(inputs)}")
        processor = ImageProcessor(tok.config.image_size, tok.config.resize)
        size = self.options.batch_size
        with Decoder(processor, self.options.workers, ahead=2 * size) as decoder:
            for batch in _batches(decoder.map(list_entries(inputs, self._skip)), size):
                for image in batch:
                    if image.error is not None:
                        self._skip(image.error)
                usable = [image for image in batch if image.error is None]
                if usable:
                    pixels = torch.from_numpy(np.stack([image.pixels for image in usable]))
                    codes = tok.encode(processor.normalize(pixels.to(tok.device)))
                    yield from zip([image.path for image in usable], codes.tolist(), strict=True)

    def _skip(self, line: str) -> None:
        self.bad += 1
        self._say(f"skipped: {line}")

    def _say(self, line: str) -> None:
        self.progress.line(f"seed-fast: {line}")


class _Painter:
    """Pictures of codes, numbered, into a folder."""

    def __init__(self, options: DrawOptions) -> None:
        from seed_fast.generate.pictures import open_painter

        self.options = options
        self.tok = _tokenizer(options)
        if options.num_codes != self.tok.config.num_codes:
            raise UsageError(
                f"--num-codes must be {self.tok.config.num_codes}, as --model {options.model} has, "
                f"got {options.num_codes}"
            )
        self.painter = open_painter(options.decoder, self.tok)
        self.done = 0

    def __call__(self, codes: Any) -> None:
        from seed_fast.generate.pictures import paint

        folder = self.options.pictures
        folder.mkdir(parents=True, exist_ok=True)
        for picture in paint(
            self.painter, self.tok, codes, steps=self.options.steps, seed=self.options.seed + self.done
        ):
            content = io.BytesIO()
            picture.save(content, format="PNG")
            write_beside(folder / f"{self.done:06d}.png", content.getvalue())
            self.done += 1


def after_checks(options: Options) -> Decoding:
    """How tokens are chosen, if the options can be meant and what they need is installed."""
    if options.dtype not in DTYPES:
        raise UsageError(f"--dtype must be one of {', '.join(DTYPES)}, got {options.dtype!r}")
    require("transformers", "peft")
    return options.decoding()


def _check_output(options: Options) -> None:
    if options.output is not None:
        _meant("--output", options.output)
    given = getattr(options, "codes", None) or getattr(options, "file", None)
    if given is not None and not given.exists():
        raise UsageError(f"{given}: no such file")
    if getattr(options, "pictures", None) is not None:
        _meant("--pictures", options.pictures, folder=True)  # type: ignore[attr-defined]


def language_model(options: Options, folder: Path) -> LanguageModel:
    """The model of a folder, on the device and in the type that were asked for."""
    import torch
    from transformers.utils import logging

    from seed_fast.lm.model import load

    logging.disable_progress_bar()  # of loading, in the midst of our lines
    return load(folder, options.base, _device(options.device), getattr(torch, options.dtype))


def _tokenizer(options: Options, note: Callable[[str], None] = _complain) -> Any:
    from seed_fast import SeedTokenizer

    tok = SeedTokenizer.from_pretrained(options.model, device=_device(options.device))
    if not tok.trained:
        note(f"{options.model}: these weights are untrained (the seeded initial ones); the codes mean nothing yet")
    return tok


def check_tokenizer(
    options: Options,
    speaker: LanguageModel,
    tok: Any,
    folder: Path | None = None,
    note: Callable[[str], None] = _complain,
) -> None:
    """The tokenizer must be the one whose codes the language model of `folder` (default: --lm) learned.

    Raises:
        ValueError: it has another number of codes, or is another one.
    """
    from seed_fast.data.tokens import TokenizerIdentity
    from seed_fast.lm.identity import check_identity

    words, codes = speaker.vocabulary.codebook_size, tok.config.codebook_size
    if words != codes:
        raise ValueError(f"the language model must have the tokenizer's {codes} codes as words, got {words}")
    check_identity(
        folder or options.lm,
        TokenizerIdentity.of_tokenizer(tok, options.model),
        f"--model {options.model}",
        anyway=options.any_tokenizer,
        note=note,
    )


def _texts_of(path: Path | None) -> list[str]:
    texts = []
    for number, line in _lines_of(path):
        try:
            text = decode_text(line)
            if text.startswith("{"):
                record = parse_json(text)
                text = record.get("text") if isinstance(record, dict) else None
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"got {shown(text)}")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: expected a caption or a JSON line with a text: {error}") from None
        texts.append(text)
    if not texts:
        raise UsageError(f"{path}: must hold a caption, got none")
    return texts


def _lines_of(path: Path | None) -> Iterator[tuple[int, bytes]]:
    """(number, text) of the lines that aren't blank."""
    try:
        yield from ((number, line.strip()) for number, line in read_lines(path or "") if line.strip())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _batches(items: Any, size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


@contextmanager
def _lines(output: Path | None, progress: Progress) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Writes JSON lines: to standard output as they come, or to a file that gets its name at the end."""
    if output is None or (output := output_file(output)) == STDOUT:
        yield lambda record: progress.output(json.dumps(record))
        return
    beside = output.with_name(output.name + ".partial")
    locked = open_locked(beside)
    try:
        locked.truncate(0)  # of a run that was killed
        with writing(output), open(locked.fileno(), "w", encoding="utf-8", closefd=False) as file:
            yield lambda record: print(json.dumps(record), file=file, flush=True)
            os.fsync(locked.fileno())
        with writing(output):
            rename_locked(locked, beside, output)
    finally:
        if not locked.closed:
            locked.close()
            beside.unlink(missing_ok=True)
