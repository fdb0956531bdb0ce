"""Streams of images as codes: read from image files through the tokenizer, or from lines that hold codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seed_fast._text import parse_json, shown
from seed_fast.data.codes import encode_resized, no_codes
from seed_fast.data.decode import ImageDecoder
from seed_fast.data.image_processor import ImageProcessor
from seed_fast.data.shards import list_entries
from seed_fast.generate.batches import batched
from seed_fast.generate.lines import nonblank_lines
from seed_fast.generate.picture_files import PNG_SIGNATURE, read_picture
from seed_fast.model.tokenizer import SeedTokenizer


class EncodedImage(NamedTuple):
    """The path of an image and its codes.

    Attributes:
        path: where it is, or another name.
        codes: N integers.
        place: its place from 0 among all images of the input, those that could not be used included.
        pixels: uint8 [S, S, 3] as the tokenizer has read it; None if it was read as codes.
    """

    path: str
    codes: list[int]
    place: int = 0
    pixels: np.ndarray | None = None


def encode_images(
    tok: SeedTokenizer,
    inputs: Iterable[str],
    *,
    batch_size: int,
    workers: int = 0,
    on_problem: Callable[[str], None],
) -> Iterator[EncodedImage]:
    """Read, decode and tokenise images, in order.

    Args:
        tok: the tokenizer.
        inputs: image files, folders, globs and tar shards.
        batch_size: images per forward pass.
        workers: processes that read and decode; 0: this process does it.
        on_problem: called with one line for each image or input that can't be used, which is left out.

    Raises:
        WorkerDied: a worker was killed, crashed, or didn't start.
    """
    processor = ImageProcessor(tok.config.image_size, tok.config.resize)
    with ImageDecoder(processor, workers, ahead=2 * batch_size) as decoder:
        for batch in batched(enumerate(decoder.map(list_entries(inputs, on_problem))), batch_size):
            good = []
            for place, image in batch:
                if image.error is not None or image.pixels is None:
                    on_problem(str(image.error))
                else:
                    good.append((place, image.path, image.pixels))
            if not good:
                continue
            rows = encode_resized(tok, processor, np.stack([pixels for _, _, pixels in good])).tolist()
            for (place, path, pixels), codes in zip(good, rows, strict=True):
                if codes[0] < 0:
                    on_problem(no_codes(path, tok))
                else:
                    yield EncodedImage(path, codes, place, pixels)


def read_codes(
    path: Path, codebook_size: int, *, num_codes: int | None, on_problem: Callable[[str], None]
) -> Iterator[EncodedImage]:
    """Read images as codes: from a file of JSON lines, or from a PNG file that this package has drawn.

    A line is {"path", "codes"} or {"text", "codes"}, as `seed-fast tokenize` and `draw` write them; it may have neither
    name.

    Args:
        path: the file.
        codebook_size: size of the codebook that codes must be in.
        num_codes: how many codes an image must have; None: any number but none.
        on_problem: called with one line of text for each line or picture that can't be used, which is left out.

    Raises:
        OSError: the file can't be read.
        ValueError: a line is too long to be read at all.
    """
    if _is_png(path):
        try:
            _, record = read_picture(path)
            codes = _codes_of_record(record, codebook_size, num_codes)
        except ValueError as error:
            on_problem(str(error) if str(error).startswith(str(path)) else f"{path}: {error}")
            return
        yield EncodedImage(str(record.get("path", record.get("text", path))), codes)
        return
    for place, (number, line) in enumerate(nonblank_lines(path)):
        name = f"{path}:{number}"
        try:
            record = parse_json(line)
            codes = _codes_of_record(record, codebook_size, num_codes)
        except ValueError as error:
            on_problem(f"{name}: expected a JSON line with codes: {error}")
            continue
        yield EncodedImage(str(record.get("path", record.get("text", name))), codes, place)


def _is_png(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE


def _codes_of_record(record: Any, codebook_size: int, num_codes: int | None) -> list[int]:
    if not isinstance(record, dict) or not isinstance(record.get("codes"), list):
        raise ValueError(f"got {shown(record)}")
    codes = record["codes"]
    if any(type(code) is not int for code in codes):  # bool is an int to isinstance
        raise ValueError(f"codes must be integers, got {shown(codes)}")
    if not codes or (num_codes is not None and len(codes) != num_codes):
        raise ValueError(f"an image must have {num_codes or 'some'} codes, got {len(codes)}")
    for code in codes:
        if not 0 <= code < codebook_size:
            raise ValueError(f"a code must be in 0..{codebook_size - 1}, got {shown(code)}")
    return codes
