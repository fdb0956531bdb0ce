"""A generated world of pictures and captions: coloured shapes on a background, as many as wanted, without a download.

Everything is computed in integers from SHAKE-128 of (seed, index), so a picture and its caption are the same bytes on
every machine and with every version of numpy. Captions can be read back (`parse`) and compared with a scene
(`describes`), so what a model says about a picture can be judged exactly.

Training, validation and test never share a combination of objects: see `split_of`.

Examples:
    >>> from seed_fast.data import shapes
    >>> scene = shapes.scene(seed=0, index=3)
    >>> shapes.render(scene, 64).shape
    (64, 64, 3)
    >>> shapes.describes(shapes.parse(shapes.caption(scene)), scene)
    True
"""

from __future__ import annotations

from seed_fast.data.shapes.draw import render
from seed_fast.data.shapes.read import read
from seed_fast.data.shapes.text import Description, Mention, caption, describes, distinct, parse
from seed_fast.data.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    PATTERNS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIDE,
    SIZES,
    SPLITS,
    Object,
    Scene,
    relation,
    scene,
    sibling,
    split_of,
)

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "PATTERNS",
    "POSITIONS",
    "RELATIONS",
    "SHAPES",
    "SIDE",
    "SIZES",
    "SPLITS",
    "Description",
    "Mention",
    "Object",
    "Scene",
    "caption",
    "describes",
    "distinct",
    "parse",
    "read",
    "relation",
    "render",
    "scene",
    "sibling",
    "split_of",
]
