"""The objects and scenes of the world of shapes; (seed, index) determines a scene.

Coordinates are in 64ths of the picture's side, x to the right and y downwards; radii in half of that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, TypeVar

SHAPES = ("circle", "ring", "square", "triangle", "diamond", "star", "cross", "heart", "moon", "arrow")
SIZES = {"small": (9, 11), "medium": (14, 17), "large": (21, 24)}  # radius of the circle around the shape: least, most
COLOURS = {
    "red": (214, 40, 40),
    "orange": (244, 130, 20),
    "yellow": (248, 214, 30),
    "green": (40, 160, 70),
    "blue": (40, 90, 220),
    "purple": (135, 50, 180),
    "pink": (250, 125, 185),
    "brown": (125, 75, 35),
    "white": (250, 250, 250),
    "black": (18, 18, 18),
}
BACKGROUNDS = {
    "white": (242, 242, 242),
    "gray": (150, 150, 150),
    "black": (30, 30, 30),
    "cream": (250, 236, 200),
    "light blue": (176, 214, 244),
    "light green": (190, 232, 176),
    "dark blue": (24, 34, 92),
    "dark green": (16, 66, 42),
}
PATTERNS = ("plain", "striped", "checkered")
POSITIONS = (  # cells of a 3 x 3 grid, row by row
    *("at the top left", "at the top", "at the top right"),
    *("on the left", "in the middle", "on the right"),
    *("at the bottom left", "at the bottom", "at the bottom right"),
)
RELATIONS = ("to the left of", "to the right of", "above", "below")
SPLITS = ("train", "val", "test")

SIDE = 64
MAX_TILT = 3  # steps of 4 degrees to either side
STYLES = 4  # ways to put a scene into words
_CENTRES = (11, 32, 53)  # centres of the grid's columns and rows
_JITTER = 3
_GAP = 3  # least distance between the circles around two objects, half 64ths
_CONTRAST = 120  # least sum over channels of |object - background|
_SHARE_OF_COUNTS = (1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4)  # how many objects a scene has: a draw from these

T = TypeVar("T")


@dataclass(frozen=True)
class Object:
    """An object in a picture."""

    shape: str
    colour: str
    size: str
    x: int  # centre, 64ths
    y: int
    radius: int  # half 64ths
    tilt: int  # steps of 4 degrees, clockwise
    tint: tuple[int, int, int]  # added to the colour

    @property
    def position(self) -> str:
        """Return the cell of the 3 x 3 grid in which the centre lies, in words."""
        return POSITIONS[3 * (3 * self.y // SIDE) + 3 * self.x // SIDE]


@dataclass(frozen=True)
class Scene:
    """A scene: all that its picture shows, and the wording of its caption."""

    objects: tuple[Object, ...]  # in the order of the caption
    background: str
    pattern: str
    phase: int  # where the pattern begins, 0 to 7 64ths
    shade: tuple[int, int]  # added to the background at the top and at the bottom
    noise: int  # largest absolute value added to a channel of a pixel
    style: int
    seed: int
    index: int
    split: str


class Draws:
    """An endless stream of random draws that depends on a name alone: SHAKE-128 of the name and a block number."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._block = self._at = 0
        self._bytes = b""

    def below(self, bound: int) -> int:
        """Draw an integer in [0, bound), bound at most 256; uniform up to 2^-16."""
        if self._at + 3 > len(self._bytes):
            self._bytes = hashlib.shake_128(f"{self._name}/{self._block}".encode()).digest(384)
            self._block, self._at = self._block + 1, 0
        value = int.from_bytes(self._bytes[self._at : self._at + 3], "little")
        self._at += 3
        return value * bound >> 24

    def between(self, least: int, most: int) -> int:
        """Draw an integer in [least, most]."""
        return least + self.below(most - least + 1)

    def choose(self, values: Sequence[T]) -> T:
        """Draw one of the values."""
        return values[self.below(len(values))]


Kind = tuple[str, str, str]  # shape, colour, size


def split_of(kinds: Sequence[Kind]) -> str:
    """Return the split of a combination of objects, which doesn't depend on seed, index, positions or background.

    A combination is the set of (shape, colour, size) of a scene's objects. A hash of it gives 18 of 20 combinations to
    "train", one to "val", one to "test". `scene` draws objects until the hash gives the split that was asked for: so a
    combination of one split occurs in no other, under any seed.
    """
    name = "|".join(sorted(" ".join(kind) for kind in kinds))
    place = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") % 20
    return "val" if place == 0 else "test" if place == 1 else "train"


def scene(seed: int, index: int, split: str = "train") -> Scene:
    """Make the scene with this number.

    Args:
        seed, index: any integers. Different pairs give independent scenes.
        split: one of `SPLITS`; scenes of different splits never hold the same combination of objects.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"shapes: split must be one of {', '.join(SPLITS)}, got {split!r}")
    draws = Draws(f"seed_fast.shapes/1/{seed}/{index}/{split}")
    while True:
        kinds = _kinds(draws)
        if split_of(kinds) != split:
            continue
        backgrounds = [name for name in BACKGROUNDS if all(_visible(colour, name) for _, colour, _ in kinds)]
        if backgrounds:
            break
    shade = draws.between(-8, 8)
    return Scene(
        objects=_place(kinds, draws),
        background=draws.choose(backgrounds),
        pattern=draws.choose(("plain", *PATTERNS)),
        phase=draws.below(8),
        shade=(shade, -shade),
        noise=draws.between(2, 7),
        style=draws.below(STYLES),
        seed=seed,
        index=index,
        split=split,
    )


def _kinds(draws: Draws) -> list[Kind]:
    """Draw one to four kinds of object, no two of one shape and colour, so that "the red star" is always one object."""
    count = draws.choose(_SHARE_OF_COUNTS)
    kinds: dict[tuple[str, str], Kind] = {}
    while len(kinds) < count:
        kind = (draws.choose(SHAPES), draws.choose(tuple(COLOURS)), draws.choose(tuple(SIZES)))
        kinds.setdefault(kind[:2], kind)
    return list(kinds.values())


def _visible(colour: str, background: str) -> bool:
    pairs = zip(COLOURS[colour], BACKGROUNDS[background], strict=True)
    return sum(abs(one - other) for one, other in pairs) >= _CONTRAST


def _place(kinds: list[Kind], draws: Draws) -> tuple[Object, ...]:
    """Place objects in different cells of the grid, so that they don't touch."""
    attempt = 0
    while True:
        attempt += 1
        # Four of the largest always fit into the corners; the middle ones are for luckier draws.
        cells = list(range(9)) if attempt <= 8 else [0, 2, 6, 8]
        jitter = _JITTER if attempt <= 8 else 0
        objects = tuple(_object(kind, cells.pop(draws.below(len(cells))), jitter, draws) for kind in kinds)
        if all(_apart(one, other) for one, other in combinations(objects, 2)):
            return objects


def _object(kind: Kind, cell: int, jitter: int, draws: Draws) -> Object:
    shape, colour, size = kind
    radius = draws.between(*SIZES[size])
    row, column = divmod(cell, 3)
    return Object(
        shape=shape,
        colour=colour,
        size=size,
        x=_inside(_CENTRES[column] + draws.between(-jitter, jitter), radius),
        y=_inside(_CENTRES[row] + draws.between(-jitter, jitter), radius),
        radius=radius,
        tilt=draws.between(-MAX_TILT, MAX_TILT),
        tint=(draws.between(-14, 14), draws.between(-14, 14), draws.between(-14, 14)),
    )


def _inside(centre: int, radius: int) -> int:
    """Return the coordinate nearest to `centre` at which the whole object lies in the picture."""
    return min(max(centre, -(-radius // 2) + 1), SIDE - 1 - -(-radius // 2))


def sibling(first: Scene, index: int) -> Scene:
    """Return the same scene with one object of another shape or size, as scene `index` of its seed and split.

    Random scenes differ so much in colours, places and background that a contrast between them needs no shapes. If
    siblings differed in all their objects, the shape of the largest would do. So they differ in one, which may be any.

    Args:
        first: a scene.
        index: above first's. Siblings with indexes in a row are different, as long as there are changes left to make.
    """
    draws = Draws(f"seed_fast.shapes/1/{first.seed}/{first.index}/{first.split}/siblings")
    places = range(len(first.objects))
    shapes = [(place, {"shape": shape}) for place in places for shape in SHAPES]
    sizes = [(place, {"size": size}) for place in places for size in SIZES]
    found: list[tuple[Object, ...]] = []
    while (shapes or sizes) and len(found) < index - first.index:
        # Every third change is one of size, though there are fewer.
        changes = sizes if sizes and (not shapes or draws.below(3) == 0) else shapes
        place, change = changes.pop(draws.below(len(changes)))
        objects = list(first.objects)
        objects[place] = _changed(objects[place], change, draws)
        if objects[place] != first.objects[place] and _possible(objects, first.split):
            found.append(tuple(objects))
    if not found:
        return replace(first, index=index)
    return replace(first, objects=found[(index - first.index - 1) % len(found)], index=index)


def _changed(item: Object, change: dict[str, Any], draws: Draws) -> Object:
    if change.get("size", item.size) == item.size:
        return replace(item, **change)
    radius = draws.between(*SIZES[change["size"]])
    return replace(item, x=_inside(item.x, radius), y=_inside(item.y, radius), radius=radius, **change)


def _possible(objects: Sequence[Object], split: str) -> bool:
    """Return True if a scene of this split can hold these objects."""
    kinds = [(item.shape, item.colour, item.size) for item in objects]
    alone = len({kind[:2] for kind in kinds}) == len(kinds)
    return alone and split_of(kinds) == split and all(_apart(one, other) for one, other in combinations(objects, 2))


def _apart(one: Object, other: Object) -> bool:
    across, down = 2 * (one.x - other.x), 2 * (one.y - other.y)
    return across**2 + down**2 >= (one.radius + other.radius + _GAP) ** 2


def relation(one: Object, other: Object) -> str | None:
    """Return where `one` is, seen from `other`: one of `RELATIONS`, or None if the line between them is too slanted."""
    across, down = other.x - one.x, other.y - one.y
    if abs(across) >= 2 * abs(down):
        return RELATIONS[0] if across > 0 else RELATIONS[1]
    if abs(down) >= 2 * abs(across):
        return RELATIONS[2] if down > 0 else RELATIONS[3]
    return None
