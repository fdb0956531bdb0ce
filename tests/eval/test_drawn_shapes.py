"""Drawn pictures are judged object by object, and what is wrong counts as wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from seed_fast.data import shapes
from seed_fast.eval.drawn_shapes import judge_drawings

NAMES = ("colour", "shape", "size", "position", "relation", "count")


def scene_of(*things):
    objects = tuple(shapes.Object(shape, colour, "medium", x, y, 15, 0, (0, 0, 0)) for shape, colour, x, y in things)
    return shapes.Scene(objects, "white", "plain", 0, (0, 0), 2, 0, 0, 0, "test")


PAIR = scene_of(("star", "red", 11, 11), ("ring", "blue", 53, 11))


def judged(scene, *others):
    return judge_drawings([scene] * len(others), [shapes.render(other, 64) for other in others]).to_dict()


def test_a_true_picture_is_all_right():
    scenes = [shapes.scene(4, index, "test") for index in range(20)]
    values = judge_drawings(scenes, [shapes.render(scene, 64) for scene in scenes]).to_dict()
    assert [values[name] for name in NAMES] == [100.0] * len(NAMES)


def test_an_empty_picture_is_all_wrong():
    values = judge_drawings([PAIR], [np.full((64, 64, 3), 242, np.uint8)]).to_dict()
    assert [values[name] for name in NAMES] == [0.0] * len(NAMES)


@pytest.mark.parametrize(
    ("things", "wrong"),
    [
        ((("star", "green", 11, 11), ("ring", "blue", 53, 11)), {"colour": 50.0}),
        ((("heart", "red", 11, 11), ("ring", "blue", 53, 11)), {"shape": 50.0}),
        # Each where the other should be: nothing at a place is right, nor where things are.
        (
            (("star", "red", 53, 11), ("ring", "blue", 11, 11)),
            {"colour": 0.0, "shape": 0.0, "position": 0.0, "relation": 0.0},
        ),
        # One lies a row too low, still to the left of the other.
        (
            (("star", "red", 11, 32), ("ring", "blue", 53, 11)),
            {"colour": 50.0, "shape": 50.0, "size": 50.0, "position": 50.0},
        ),
        (
            (("star", "red", 11, 11),),
            dict.fromkeys(("colour", "shape", "size", "position"), 50.0) | {"relation": 0, "count": 0},
        ),
    ],
)
def test_each_fault_is_counted_where_it_is(things, wrong):
    assert judged(PAIR, scene_of(*things)) == {"pictures": 1, "objects": 2} | dict.fromkeys(NAMES, 100.0) | wrong


def test_an_object_too_many_is_seen_in_the_count_alone():
    more = replace(PAIR, objects=(*PAIR.objects, *scene_of(("moon", "black", 32, 53)).objects))
    assert judged(PAIR, PAIR, more) == {"pictures": 2, "objects": 4} | dict.fromkeys(NAMES, 100.0) | {"count": 50.0}
