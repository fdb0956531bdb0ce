"""Reading files that list images and captions, in the formats in use, as records of one kind."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from seed_fast import limits
from seed_fast._text import decode_text, parse_json, read_json, read_lines, shown
from seed_fast.data.samples import CAPTION_KEYS, IMAGE_KEYS, captions_of, clean_captions
from seed_fast.data.shards import IMAGE_SUFFIXES

LIST_SUFFIXES = (".jsonl", ".tsv", ".json")
_IMAGE_COLUMNS = (*IMAGE_KEYS, "filename", "image_path", "path")  # names in a header, in any case
_CAPTION_COLUMNS = (*CAPTION_KEYS, "title")
_KARPATHY_SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


class DataError(ValueError):
    """A data set that cannot be used. The message starts with its name."""


class Record(NamedTuple):
    """An entry of a list: an image and its captions."""

    image: str  # path as the list gives it; the entry's own name if it gives none
    captions: tuple[str, ...]
    problem: str | None  # why it can't be used


def read_list(path: Path, split: str) -> Iterator[Record]:
    """Yield every entry of a list, in its order.

    Args:
        path: `.jsonl`: objects with "image" and "caption"; `.tsv`: image and caption or the other way round, or a
            header that names the columns; `.json`: a list of such objects (CC3M), a Karpathy split ("images" with
            "sentences"), or COCO's annotations ("images" and "annotations"). Each may begin with a byte order mark.
        split: part of a Karpathy file: "train" (with "restval"), "val" or "test". Other lists have no splits.

    Raises:
        DataError: the file can't be read, or has none of these formats.
    """
    try:
        if path.suffix == ".json":
            yield from _of_json(path, read_json(path, limits.MAX_FILE_BYTES), split)
        else:
            yield from _of_jsonl(path) if path.suffix == ".jsonl" else _of_tsv(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not valid {'JSON' if path.suffix == '.json' else 'lines'}: {error}") from None


def _of_jsonl(path: Path) -> Iterator[Record]:
    for number, line in read_lines(path):
        if line.strip():
            try:
                yield _record(parse_json(line), f"{path}:{number}")
            except ValueError as error:
                yield Record(f"{path}:{number}", (), f"not valid JSON: {error}")


def _of_tsv(path: Path) -> Iterator[Record]:
    columns: tuple[int, int] | None = None  # columns of the image and the caption
    for number, line in read_lines(path):
        cells = [cell.strip() for cell in line.split(b"\t")]
        if not any(cells):
            continue
        if columns is None:
            columns, is_header = _columns([os.fsdecode(cell) for cell in cells])
            if is_header:
                continue
        if len(cells) <= max(columns):
            yield Record(f"{path}:{number}", (), f"expected an image, a tab and a caption, got {shown(line)}")
            continue
        # The names of files are bytes; captions are text, in UTF-8.
        image, caption = (cells[at] for at in columns)
        try:
            record = {"image": os.fsdecode(image), "caption": decode_text(caption)}
        except ValueError as error:
            yield Record(os.fsdecode(image), (), f"the caption in {path}:{number}: {error}")
        else:
            yield _record(record, f"{path}:{number}")


def _columns(cells: list[str]) -> tuple[tuple[int, int], bool]:
    """Return (column of the image, column of the caption, whether the first line is a header), judged by that line."""
    names = [cell.lower() for cell in cells]
    image_at = next((at for at, name in enumerate(names) if name in _IMAGE_COLUMNS), None)
    caption_at = next((at for at, name in enumerate(names) if name in _CAPTION_COLUMNS), None)
    if image_at is not None and caption_at is not None:
        return (image_at, caption_at), True
    is_image = [name.endswith(IMAGE_SUFFIXES) for name in names[:2]]
    return ((1, 0) if is_image == [False, True] else (0, 1)), False


def _of_json(path: Path, content: Any, split: str) -> Iterator[Record]:
    if isinstance(content, list):
        return (_record(item, f"{path}[{number}]") for number, item in enumerate(content))
    images = content.get("images") if isinstance(content, dict) else None
    if isinstance(images, list) and isinstance(content.get("annotations"), list):
        return _of_coco(path, images, content["annotations"])
    if isinstance(images, list) and any(isinstance(item, dict) and "sentences" in item for item in images):
        return _of_karpathy(path, images, split)
    raise DataError(
        f'{path}: expected a list of {{"image", "caption"}}, a Karpathy split {{"images": [{{"sentences"}}]}} or COCO '
        f'annotations {{"images", "annotations"}}, got {_shown(content)}'
    )


def _of_karpathy(path: Path, images: list[Any], split: str) -> Iterator[Record]:
    for number, item in enumerate(images):
        name = f"{path}: images[{number}]"
        try:
            if item["split"] not in _KARPATHY_SPLITS[split]:
                continue
            image = os.path.join(item.get("filepath", ""), item["filename"])
            captions = [each["raw"] if "raw" in each else " ".join(each["tokens"]) for each in item["sentences"]]
            yield _record({"image": image, "caption": captions}, name)
        except (KeyError, TypeError, AttributeError) as error:
            yield Record(name, (), f"expected split, filename and sentences: {error!r}")


def _of_coco(path: Path, images: list[Any], annotations: list[Any]) -> Iterator[Record]:
    captions: dict[Any, list[Any]] = {}
    try:
        for annotation in annotations:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    except (KeyError, TypeError):
        raise DataError(f"{path}: expected annotations with image_id and caption, got {shown(annotation)}") from None
    for number, item in enumerate(images):
        name = f"{path}: images[{number}]"
        if isinstance(item, dict) and item.get("id") in captions:
            yield _record({"image": item.get("file_name"), "caption": captions[item["id"]]}, name)
        else:
            yield Record(name, (), "no annotation has its id")


def _record(item: Any, name: str) -> Record:
    """Return the record of a JSON object with an image and captions; `name` stands in messages if it names no image."""
    try:
        captions = captions_of(item)
    except ValueError as error:
        image = _image_of(item)
        return Record(image or name, (), str(error) if image is None else f"{error} ({name})")
    image = _image_of(item)
    if image is None:
        return Record(name, (), f"expected {' or '.join(IMAGE_KEYS)} to be a path, got {_shown(item)}")
    return Record(image, captions, None)


def _image_of(item: Any) -> str | None:
    if not isinstance(item, dict):
        return None
    image = next((item[key] for key in IMAGE_KEYS if key in item), None)
    return image if isinstance(image, str) and image and "\0" not in image else None


def _shown(content: Any) -> str:
    if isinstance(content, dict):
        return f"an object with {', '.join(map(shown, list(content)[:5])) or 'nothing'}"
    return f"{type(content).__name__} {shown(content)}"


def merged(records: Iterable[Record]) -> Iterator[Record]:
    """Yield one record per image with all of its captions, where the image first comes; keep unusable ones."""
    captions: dict[str, tuple[str, ...]] = {}
    unusable = []
    for record in records:
        if record.problem:
            unusable.append(record)
        else:
            captions[record.image] = captions.get(record.image, ()) + record.captions
    for image, texts in captions.items():
        yield Record(image, clean_captions(list(dict.fromkeys(texts))), None)
    yield from unusable
