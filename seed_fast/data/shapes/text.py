"""Captions of scenes, and parsing such captions.

    a small red star at the top left and a large blue ring on the right on a white background
    a striped gray background with a small red star above a large blue ring

A caption is a list of such clauses, "a SIZE COLOUR SHAPE" with a position or with a relation to another thing, and one
background.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from seed_fast.data.shapes import world
from seed_fast.data.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    PATTERNS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    Object,
    Scene,
    relation,
)


@dataclass(frozen=True)
class Mention:
    """An object as a caption names it."""

    size: str
    colour: str
    shape: str
    position: str | None  # None: the caption only relates it to another object


@dataclass(frozen=True)
class Description:
    """The content of a caption."""

    objects: tuple[Mention, ...]  # in the order of the text
    relations: tuple[tuple[int, str, int], ...]  # objects[first] relation objects[second]
    background: str
    pattern: str


def caption(scene: Scene) -> str:
    """Describe a scene in one English sentence.

    It names size, colour and shape of every object, the background and its pattern (if it is not plain), and for each
    object its position or, in every second style and where it can be said, its relation to the next object.
    """
    pattern = "" if scene.pattern == "plain" else scene.pattern + " "
    ground = f"a {pattern}{scene.background} background"
    things = _joined(_clauses(scene.objects, related=scene.style % 2 == 1))
    if scene.style == 0:
        return f"{things} on {ground}"
    if scene.style == 1:
        return f"{things}, on {ground}"
    if scene.style == 2:
        return f"on {ground}, {things}"
    return f"{ground} with {things}"


def _clauses(objects: tuple[Object, ...], related: bool) -> list[str]:
    clauses = []
    rest = list(objects)
    while rest:
        one = rest.pop(0)
        words = relation(one, rest[0]) if rest and related else None
        clauses.append(f"{_thing(one)} {words} {_thing(rest.pop(0))}" if words else f"{_thing(one)} {one.position}")
    return clauses


def _thing(item: Object) -> str:
    return f"a {item.size} {item.colour} {item.shape}"


def _joined(clauses: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(clauses[:-1]), clauses[-1])))


def _any(words: Iterable[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))  # the longest first: "at the top" begins "at the top left"


_THING = f"an? ({_any(SIZES)}) ({_any(COLOURS)}) ({_any(SHAPES)})"
_CLAUSE = re.compile(f"{_THING} (?:({_any(POSITIONS)})|({_any(RELATIONS)}) {_THING})")
_GROUND = re.compile(f"(?:on )?a (?:({_any(PATTERNS)}) )?({_any(BACKGROUNDS)}) background")
_BETWEEN = re.compile(r",? ?(?:and|with|there (?:is|are))?")


def parse(text: str) -> Description:
    """Parse a caption as `caption` writes them. Case, spacing and a final full stop don't matter.

    Raises:
        ValueError: some part of the text is not in that language; the message quotes it.
    """
    words = " ".join(text.lower().split()).removesuffix(".")
    grounds = list(_GROUND.finditer(words))
    if len(grounds) != 1:
        raise ValueError(f"shapes: a caption names one background, found {len(grounds)} in {text!r}")
    pattern, background = grounds[0].groups()
    objects: list[Mention] = []
    relations: list[tuple[int, str, int]] = []
    at = 0
    for match in sorted([*grounds, *_CLAUSE.finditer(words)], key=re.Match.start):
        _check_between(words[at : match.start()], text)
        at = match.end()
        if match.re is _GROUND:
            continue
        size, colour, shape, position, related, *other = match.groups()
        objects.append(Mention(size, colour, shape, position))
        if related:
            relations.append((len(objects) - 1, related, len(objects)))
            objects.append(Mention(other[0], other[1], other[2], None))
    _check_between(words[at:], text)
    if not objects:
        raise ValueError(f"shapes: a caption names an object, found none in {text!r}")
    return Description(tuple(objects), tuple(relations), background, pattern or "plain")


def _check_between(words: str, text: str) -> None:
    if not _BETWEEN.fullmatch(words.strip()):
        raise ValueError(f"shapes: can't read {words.strip()!r} in {text!r}")


def describes(description: Description, scene: Scene) -> bool:
    """Return True if a description is true of the scene and names all of its objects, in any order."""
    found = {(item.colour, item.shape): item for item in scene.objects}
    named = [found[key] for item in description.objects if (key := (item.colour, item.shape)) in found]
    if not len(set(named)) == len(named) == len(description.objects) == len(scene.objects):
        return False
    places = zip(description.objects, named, strict=True)
    return (
        (description.background, description.pattern) == (scene.background, scene.pattern)
        and all(mention.size == item.size and mention.position in (None, item.position) for mention, item in places)
        and all(relation(named[one], named[other]) == words for one, words, other in description.relations)
    )


def distinct(seed: int, count: int, split: str) -> list[int]:
    """Return the first `count` indexes whose captions are all different, as a retrieval test needs.

    Raises:
        ValueError: scenes of this split have not so many captions; told after 20 scenes per caption asked for.
    """
    first_of: dict[str, int] = {}
    for index in range(20 * count + 1000):
        if len(first_of) == count:
            return list(first_of.values())
        first_of.setdefault(caption(world.scene(seed, index, split)), index)
    raise ValueError(f"shapes: {count} distinct captions asked for, found {len(first_of)}")
