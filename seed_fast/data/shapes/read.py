"""Reading a picture of the world back: which objects its pixels show, and where.

The reader knows the world's colours and shapes, and nothing of how the picture came about, so it can judge pictures
that a model drew. First it finds the background; what differs from it falls into connected parts; each part is compared
with every shape, size and tilt that the world draws.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from seed_fast.data.shapes.draw import render
from seed_fast.data.shapes.world import BACKGROUNDS, COLOURS, MAX_TILT, SHAPES, SIDE, SIZES, Object, Scene

LEAST_AREA = 10  # px of a part that counts as an object; the smallest that the world draws has 16
_CONTRAST = 120  # least sum over channels of |object - background| in the world
_TONE = 30  # by which a pattern is lighter or darker than its background
_WINDOW = 32  # px, holds the largest object
_PATTERNED = 0.15  # least share of pixels in the pattern's other tone


class Templates(NamedTuple):
    """Every shape, radius and tilt, drawn once; T templates."""

    kinds: list[tuple[str, str, int, int]]  # shape, size, radius and tilt of each
    masks: np.ndarray  # float32 [T, 32 * 32], coverage 0..1 around the middle of the mask's own box
    squares: np.ndarray  # float32 [T], sum of the squares of each mask
    offsets: np.ndarray  # [T, 2], from the middle of the box to the object's centre, px


def read(pixels: np.ndarray) -> tuple[Object, ...]:
    """Return the objects that a picture shows, from the largest part of the picture to the smallest.

    Args:
        pixels: uint8 [64, 64, 3], drawn by `render` or by a model.

    Returns:
        Objects; `tint` is what is left of a part's colour beside the colour's own.

    Raises:
        TypeError: the pixels aren't uint8.
        ValueError: they aren't [64, 64, 3].

    Examples:
        >>> from seed_fast.data import shapes
        >>> [item.colour for item in shapes.read(shapes.render(shapes.scene(0, 3), 64))]
        ['green', 'blue']
    """
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8:
        raise TypeError(f"shapes: pixels must be uint8, got {pixels.dtype}")
    if pixels.shape != (SIDE, SIDE, 3):
        raise ValueError(f"shapes: pixels must be [{SIDE}, {SIDE}, 3], got {list(pixels.shape)}")
    picture = pixels.astype(np.float32)
    tones, colours = _palette(picture)

    # A pixel belongs to an object if it is nearer to a colour that is seen on this background than to the background.
    to_ground = np.abs(picture[:, :, None] - tones).sum(axis=3).min(axis=2)
    to_colour = np.abs(picture[:, :, None] - colours).sum(axis=3).min(axis=2)
    labels = _parts(to_colour < to_ground)
    names, areas = np.unique(labels[labels >= 0], return_counts=True)
    largest = sorted(zip(-areas, names, strict=True))
    return tuple(_object(picture, labels == name, tones) for area, name in largest if -area >= LEAST_AREA)


def _palette(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the tones [1 or 2, 3] of the picture's background, and the world's colours [C, 3] that are seen on it."""
    best: tuple[float, np.ndarray, np.ndarray] = (np.inf, np.empty(0), np.empty(0))
    for ground in BACKGROUNDS.values():
        base = np.array(ground, dtype=np.float32)
        tones = np.stack([base, base + (_TONE if base.sum() < 384 else -_TONE)])
        distances = np.abs(picture[:, :, None] - tones).sum(axis=3)
        other = distances[:, :, 1] < distances[:, :, 0]
        if (other & (distances[:, :, 1] < 2 * _TONE)).mean() < _PATTERNED:
            tones, distances = tones[:1], distances[:, :, :1]
        # What is far from the background is an object, however far.
        misfit = np.minimum(distances.min(axis=2), _CONTRAST).mean()
        if misfit < best[0]:
            colours = np.array(list(COLOURS.values()), dtype=np.float32)
            seen = np.abs(colours - base).sum(axis=1) >= _CONTRAST
            best = float(misfit), tones, colours[seen]
    return best[1], best[2]


def _parts(inside: np.ndarray) -> np.ndarray:
    """Return a label per pixel, int64 [S, S]: one number for each 4-connected part of `inside`, -1 outside."""
    labels = np.where(inside, np.arange(inside.size).reshape(inside.shape), -1)
    while True:
        # Each pixel takes the largest label of its neighbours until nothing changes.
        around = np.pad(labels, 1, constant_values=-1)
        spread = np.maximum.reduce([labels, around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]])
        spread = np.where(inside, spread, -1)
        if np.array_equal(spread, labels):
            return labels
        labels = spread


def _object(picture: np.ndarray, part: np.ndarray, tones: np.ndarray) -> Object:
    """Return the object that fits a part of the picture best."""
    # The colour of pixels whose neighbours are all inside; a thin part has none.
    around = np.pad(part, 1)
    core = part & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    shown = np.median(picture[core if core.sum() >= 4 else part], axis=0)
    colour = min(COLOURS, key=lambda name: float(np.square(shown - COLOURS[name]).sum()))

    # How much of each pixel the object covers, from 0 at the background to 1 at its colour.
    ground = tones.mean(axis=0)
    way = shown - ground
    cover = ((picture - ground) @ way / max(float(way @ way), 1.0)).clip(0, 1)
    grown = part | around[:-2, 1:-1] | around[2:, 1:-1] | around[1:-1, :-2] | around[1:-1, 2:]
    cover = np.where(grown, cover, 0)

    # Compare with all templates, at nine places around the middle of the part's box.
    middle = _middle_of_box(part)
    templates = _templates()
    places = [(down, across) for down in (-1, 0, 1) for across in (-1, 0, 1)]
    windows = np.stack(
        [_window(cover, middle[0] + down, middle[1] + across).ravel() for down, across in places], axis=1
    )
    misfits = templates.squares[:, None] - 2 * templates.masks @ windows + np.square(windows).sum(axis=0)
    best, place = np.unravel_index(int(misfits.argmin()), misfits.shape)
    shape, size, radius, tilt = templates.kinds[best]
    y, x = np.array(middle) + places[place] + templates.offsets[best]
    left = np.round(shown - COLOURS[colour]).astype(int).tolist()
    limit = SIDE - 1
    return Object(
        shape, colour, size, min(max(round(x), 0), limit), min(max(round(y), 0), limit), radius, tilt,
        (left[0], left[1], left[2]),
    )  # fmt: skip


@lru_cache(maxsize=1)
def _templates() -> Templates:
    kinds, masks, offsets = [], [], []
    for shape in SHAPES:
        for size, (least, most) in SIZES.items():
            for radius in range(least, most + 1):
                for tilt in range(-MAX_TILT, MAX_TILT + 1):
                    item = Object(shape, "white", size, SIDE // 2, SIDE // 2, radius, tilt, (0, 0, 0))
                    drawn = render(Scene((item,), "black", "plain", 0, (0, 0), 0, 0, 0, 0, "train"), SIDE)[:, :, 0]
                    low, high = BACKGROUNDS["black"][0], COLOURS["white"][0]
                    mask = (drawn.astype(np.float32) - low) / (high - low)
                    middle = _middle_of_box(mask > 0.5)
                    kinds.append((shape, size, radius, tilt))
                    masks.append(_window(mask, *middle).ravel())
                    offsets.append((SIDE // 2 - middle[0], SIDE // 2 - middle[1]))
    stacked = np.stack(masks)
    return Templates(kinds, stacked, np.square(stacked).sum(axis=1), np.array(offsets))


def _middle_of_box(part: np.ndarray) -> tuple[int, int]:
    """Return row and column of the middle of the box around a part, rounded down."""
    rows, columns = np.nonzero(part)
    return int(rows.min() + rows.max()) // 2, int(columns.min() + columns.max()) // 2


def _window(cover: np.ndarray, row: int, column: int) -> np.ndarray:
    """Return the window [32, 32] of a picture [S, S] whose middle is a pixel; 0 where it reaches over the edge."""
    half = _WINDOW // 2
    wide = np.pad(cover, _WINDOW)
    row, column = row + _WINDOW, column + _WINDOW
    return wide[row - half : row + half, column - half : column + half]
