"""How well drawn pictures of `shapes` show the scenes that they should, judged by `shapes.read` from pixels alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, permutations

import numpy as np

from seed_fast.data import shapes

NEAR = 11  # px: an object drawn further from its place than half a cell of the grid is not at that place
MOST_READ = 6  # objects of a drawn picture that are compared; a scene has at most four


@dataclass(frozen=True)
class DrawnShapes:
    """Shares, in percent, over all objects of all scenes, unless said otherwise.

    Attributes:
        pictures: number of pictures.
        objects: number of objects in the scenes.
        colour: objects at whose place an object of the right colour was drawn.
        shape: objects at whose place an object of the right shape was drawn.
        size: objects at whose place an object of the right size was drawn.
        position: objects whose likest drawn object lies in the same column (left, middle, right) and row of the grid.
        relation: pairs of objects of which the scene says one of `shapes.RELATIONS`, and the picture the same.
        count: pictures with the right number of objects.
    """

    pictures: int
    objects: int
    colour: float
    shape: float
    size: float
    position: float
    relation: float
    count: float

    def to_dict(self) -> dict[str, float]:
        """Return {name: value}."""
        return asdict(self)


def judge_drawings(scenes: Sequence[shapes.Scene], pictures: Iterable[np.ndarray]) -> DrawnShapes:
    """Compare drawn pictures with their scenes.

    Colour, shape and size are judged of the drawn object nearest to the place where the scene has one: what is missing
    there counts as wrong. Positions are judged of the object with the likest look instead, wherever it was drawn; an
    object that has neither the right colour nor the right shape is no answer.

    Args:
        scenes: what should be shown; at least one.
        pictures: as many, uint8 [64, 64, 3].

    Examples:
        >>> scenes = [shapes.scene(0, index, "test") for index in range(3)]
        >>> judge_drawings(scenes, [shapes.render(scene, 64) for scene in scenes]).shape
        100.0
    """
    hits: dict[str, list[bool]] = {name: [] for name in ("colour", "shape", "size", "position", "relation", "count")}
    for scene, picture in zip(scenes, pictures, strict=True):
        drawn = shapes.read(picture)
        hits["count"].append(len(drawn) == len(scene.objects))
        at_place = _assigned(scene.objects, drawn[:MOST_READ], by_look=False)
        for item, found in zip(scene.objects, at_place, strict=True):
            for name in ("colour", "shape", "size"):
                hits[name].append(found is not None and getattr(found, name) == getattr(item, name))
        alike = _assigned(scene.objects, drawn[:MOST_READ], by_look=True)
        hits["position"] += [
            found is not None and found.position == item.position
            for item, found in zip(scene.objects, alike, strict=True)
        ]
        for (one, one_drawn), (other, other_drawn) in combinations(zip(scene.objects, alike, strict=True), 2):
            if (words := shapes.relation(one, other)) is not None:
                hits["relation"].append(_same_way(words, one_drawn, other_drawn))
    percent = {name: round(100 * sum(each) / max(len(each), 1), 2) for name, each in hits.items()}
    return DrawnShapes(pictures=len(hits["count"]), objects=len(hits["colour"]), **percent)


def _same_way(words: str, one: shapes.Object | None, other: shapes.Object | None) -> bool:
    """Return True if the first lies on the side of the second that the words name."""
    if one is None or other is None:
        return False
    sides = {
        "to the left of": one.x < other.x,
        "to the right of": one.x > other.x,
        "above": one.y < other.y,
        "below": one.y > other.y,
    }
    return sides[words]


def _assigned(
    wanted: Sequence[shapes.Object], drawn: Sequence[shapes.Object], *, by_look: bool
) -> tuple[shapes.Object | None, ...]:
    """Return a drawn object, or None, for each wanted one: the assignment of least cost, each used at most once."""
    costs = [[_cost(item, each, by_look=by_look) for each in drawn] + [1.0] * len(wanted) for item in wanted]
    best = min(
        permutations(range(len(drawn) + len(wanted)), len(wanted)),
        key=lambda places: sum(costs[row][place] for row, place in enumerate(places)),
    )
    return tuple(
        drawn[place] if place < len(drawn) and costs[row][place] < 1 else None for row, place in enumerate(best)
    )


def _cost(item: shapes.Object, drawn: shapes.Object, *, by_look: bool) -> float:
    """Return how little a drawn object answers to a wanted one; from 1 on, not at all."""
    away = ((item.x - drawn.x) ** 2 + (item.y - drawn.y) ** 2) ** 0.5
    if not by_look:
        return away / (NEAR + 1)
    # Half for a wrong colour and half for a wrong shape; the distance only breaks ties.
    return (item.colour != drawn.colour) / 2 + (item.shape != drawn.shape) / 2 + away / 1000
