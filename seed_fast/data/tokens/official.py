"""Reading official pre-tokenised shards: tar files of pickles, of which nothing is run.

Source: official SEED-LLaMA training data, `part-%04d/%07d.tar` with members `<key>.pkl`; one dict each:
caption {'image_ids', 'text'}; question {'image_ids', 'question', 'answer'}; video, whose image_ids are those of its
frames one after the other, with 'answer' alone or both; edit {'source_image_ids', 'target_image_ids', 'instruction'},
some with 'response'; interleaved {'image_ids': [codes or None], 'texts': [str or None]}; text {'text'}.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from seed_fast._text import shown
from seed_fast.data.image_processor import ImageError
from seed_fast.data.shards import SHARD_SUFFIXES, WHOLE, Entry, ShardError, Split, read_entry, shard_members, walk
from seed_fast.data.sources import expanded
from seed_fast.data.tokens.pickles import PickleRefused, plain_unpickle
from seed_fast.data.tokens.record import Item, Items
from seed_fast.data.tokens.samples import SampleProblem


def official_items(
    inputs: Iterable[str],
    on_problem: Callable[[str], None],
    *,
    codes_per_image: int,
    start: int = 0,
    split: Split = WHOLE,
) -> Items:
    """Yield an item for every member of official shards, in order.

    Args:
        inputs: tar files, folders of them, globs and brace lists.
        on_problem: called with one line for each input that is missing or torn; the rest is read.
        codes_per_image: number of codes of an image.
        start: number of members to pass over.
        split: part of the members that belongs to this process.
    """
    place = 0
    for path in _shards(inputs, on_problem):
        try:
            for member in shard_members(path, (".pkl", ".pickle")):
                if place >= start and place % split.count == split.index:
                    yield _item(place, member, codes_per_image)
                place += 1
        except ShardError as error:
            on_problem(str(error))


def _shards(inputs: Iterable[str], on_problem: Callable[[str], None]) -> Iterator[str]:
    for spec in inputs:
        try:
            if os.path.isdir(spec):
                first = None
                for first in walk(spec, SHARD_SUFFIXES, on_problem):
                    yield first
                if first is None:
                    raise ShardError(f"{spec}: no tar shard is in this folder")
            else:
                yield from expanded(spec)
        except ValueError as error:
            on_problem(str(error))


def _item(place: int, member: Entry, codes_per_image: int) -> Item:
    try:
        return Item(place, official_sample(plain_unpickle(read_entry(member)), member.path, codes_per_image), None)
    except ImageError as error:
        return Item(place, None, str(error))
    except (PickleRefused, SampleProblem) as error:
        return Item(place, None, f"{member.path}: {error}")


def official_sample(value: Any, key: str, codes_per_image: int) -> dict[str, Any]:
    """Turn the value of a pickle into a sample of a store.

    Raises:
        SampleProblem: the value has none of the official forms.
    """
    if not isinstance(value, dict):
        raise SampleProblem(f"expected a dict, got {type(value).__name__}")
    if "texts" in value:
        slots = {"image_ids": _list(value, "image_ids"), "texts": _list(value, "texts")}
        return {"kind": "interleaved", "key": key, **slots}
    if "source_image_ids" in value:
        images = [_list(value, "source_image_ids"), _list(value, "target_image_ids")]
        response = _text(value, "response") if value.get("response") is not None else None
        told = {"instruction": _text(value, "instruction"), "response": response}
        return {"kind": "edit", "key": key, "images": images, **told}
    if "answer" in value:
        images = _frames(value, codes_per_image)
        if "question" not in value:
            return {"kind": "video", "key": key, "images": images, "text": _text(value, "answer")}
        turns = {"questions": _texts(value, "question"), "answers": _texts(value, "answer")}
        return {"kind": "question", "key": key, "images": images, **turns}
    if "image_ids" in value:
        return {"kind": "caption", "key": key, "codes": _list(value, "image_ids"), "text": _text(value, "text")}
    if "text" in value:
        return {"kind": "text", "key": key, "text": _text(value, "text")}
    raise SampleProblem(
        f"expected image_ids, texts, text, question or answer, got {', '.join(map(shown, list(value)[:5])) or 'none'}"
    )


def _frames(value: dict[str, Any], codes_per_image: int) -> list[list[Any]]:
    """Split the joined codes of several images into one list per image; [] if there is no image."""
    if value.get("image_ids") is None:
        return []
    flat = _list(value, "image_ids")
    if len(flat) % codes_per_image:
        raise SampleProblem(f"image_ids must be a multiple of {codes_per_image} codes, got {len(flat)}")
    return [flat[begin : begin + codes_per_image] for begin in range(0, len(flat), codes_per_image)]


def _list(value: dict[str, Any], name: str) -> list[Any]:
    found = value.get(name)
    if not isinstance(found, (list, tuple)):
        raise SampleProblem(f"{name} must be a list, got {type(found).__name__}")
    return list(found)


def _text(value: dict[str, Any], name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str):
        raise SampleProblem(f"{name} must be text, got {type(found).__name__}")
    return found


def _texts(value: dict[str, Any], name: str) -> list[str]:
    """Return the text of one turn, or the texts of several turns, as a list."""
    found = value[name] if isinstance(value[name], (list, tuple)) else [value[name]]
    return [_text({name: each}, name) for each in found]
