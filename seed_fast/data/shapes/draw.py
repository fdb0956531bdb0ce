"""Drawing scenes in integer arithmetic only, so that the pixels are the same bytes everywhere.

Each shape is a set of integer inequalities on a grid whose unit circle has radius 1024; 4 x 4 samples per pixel give
its coverage. Masks are cached: at 64 px there are fewer than a thousand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from seed_fast.data.shapes.world import BACKGROUNDS, COLOURS, SIDE, Object, Scene

SAMPLES = 4  # per pixel and axis
MAX_SIZE = 1024  # px
_UNIT = 1024
# 1024 times cosine and sine of 0, 4, 8 and 12 degrees.
_TURNS = ((1024, 0), (1022, 71), (1014, 143), (1002, 213))
# 1024 times the directions of a star's five tips.
_TIPS = ((0, -1024), (974, -316), (602, 828), (-602, 828), (-974, -316))

Grid = np.ndarray  # int64 [n, n]: u to the right or v downwards, 1024 is the radius


def _star(u: Grid, v: Grid) -> Grid:
    # Five lines, each through two tips, make the star: a point of it is on the inner side of at least four.
    inner = sum((u * x + v * y <= 316 * 1010).astype(np.int64) for x, y in _TIPS)
    return inner >= 4


def _heart(u: Grid, v: Grid) -> Grid:
    side = np.abs(u)
    lobes = (side - 430) ** 2 + (v + 300) ** 2 <= 500**2
    return lobes | ((v >= -170) & (side * 1060 <= 855 * (930 - v)))


def _arrow(u: Grid, v: Grid) -> Grid:
    side = np.abs(u)
    head = (v <= 0) & (side * 960 <= 800 * (v + 960))
    return head | ((v >= 0) & (v <= 900) & (side <= 270))


_INSIDE: dict[str, Callable[[Grid, Grid], Grid]] = {
    "circle": lambda u, v: u * u + v * v <= 940**2,
    "ring": lambda u, v: (u * u + v * v <= 980**2) & (u * u + v * v >= 540**2),
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= 720,
    "triangle": lambda u, v: (v <= 560) & (1560 * np.abs(u) <= 850 * (v + 1000)),
    "diamond": lambda u, v: 10 * np.abs(u) + 7 * np.abs(v) <= 7000,
    "star": _star,
    "cross": lambda u, v: (np.minimum(np.abs(u), np.abs(v)) <= 290) & (np.maximum(np.abs(u), np.abs(v)) <= 920),
    "heart": _heart,
    "moon": lambda u, v: (u * u + v * v <= 980**2) & ((u - 460) ** 2 + v * v >= 820**2),
    "arrow": _arrow,
}


def render(scene: Scene, size: int) -> np.ndarray:
    """Draw a scene.

    Args:
        scene: the scene to draw.
        size: side S, 8 to 1024 px.

    Returns:
        uint8 [S, S, 3].
    """
    if not isinstance(size, int) or not 8 <= size <= MAX_SIZE:
        raise ValueError(f"shapes: size must be an integer from 8 to {MAX_SIZE} px, got {size!r}")
    canvas = _background(scene, size)
    for item in scene.objects:
        _draw(item, canvas)
    canvas += _noise(scene, size)
    return canvas.clip(0, 255).astype(np.uint8)


def _background(scene: Scene, size: int) -> np.ndarray:
    """Return the background, int32 [S, S, 3]: its colour, lighter or darker from top to bottom, and its pattern."""
    colour = np.array(BACKGROUNDS[scene.background], dtype=np.int32)
    top, bottom = scene.shade
    rows = top + (bottom - top) * np.arange(size, dtype=np.int32) // size
    tone = 30 if colour.sum() < 384 else -30
    levels = rows[:, None] + tone * _pattern(scene.pattern, scene.phase, size)
    return colour + levels[:, :, None]


@lru_cache(maxsize=128)
def _pattern(pattern: str, phase: int, size: int) -> np.ndarray:
    """Return a pattern, int32 [S, S] of 0 and 1, with a period of 8/64 of the picture."""
    at = (np.arange(size, dtype=np.int64) * 2 + 1) * SIDE // (2 * size) + phase
    x, y = at[None, :], at[:, None]
    if pattern == "plain":
        return np.zeros((size, size), dtype=np.int32)
    if pattern == "striped":
        return np.broadcast_to((x + y) // 4 % 2, (size, size)).astype(np.int32)
    if pattern == "checkered":
        return ((x // 8 + y // 8) % 2).astype(np.int32)
    raise ValueError(f"shapes: unknown pattern {pattern!r}")


def _draw(item: Object, canvas: np.ndarray) -> None:
    size = len(canvas)
    # In fine units, 128 * SAMPLES to a pixel, every sample and every centre is an integer.
    pixel, radius = 128 * SAMPLES, item.radius * size * SAMPLES
    x, y = 2 * item.x * size * SAMPLES, 2 * item.y * size * SAMPLES
    left, top = (x - radius) // pixel, (y - radius) // pixel
    cover = _mask(item.shape, radius, item.tilt, x - left * pixel, y - top * pixel)
    # At odd sizes a box may reach one pixel over the edge.
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + len(cover), size), min(top + len(cover), size)
    cover = cover[y0 - top : y1 - top, x0 - left : x1 - left]
    colour = np.array([base + tint for base, tint in zip(COLOURS[item.colour], item.tint, strict=True)], dtype=np.int32)
    area = canvas[y0:y1, x0:x1]
    area += ((colour - area) * cover + SAMPLES**2 // 2) // SAMPLES**2


@lru_cache(maxsize=8192)
def _mask(shape: str, radius: int, tilt: int, x: int, y: int) -> np.ndarray:
    """Return the coverage, int32 [n, n, 1] in 0..16, of a shape whose centre is (x, y) fine units from the corner."""
    pixel = 128 * SAMPLES
    pixels = (max(x, y) + radius) // pixel + 1
    samples = (2 * np.arange(pixels * SAMPLES, dtype=np.int64) + 1) * 64
    u, v = (samples - x)[None, :] * _UNIT // radius, (samples - y)[:, None] * _UNIT // radius
    cosine, sine = _TURNS[abs(tilt)]
    if tilt < 0:
        sine = -sine
    inside = _INSIDE[shape]((u * cosine + v * sine) // _UNIT, (v * cosine - u * sine) // _UNIT)
    cover = inside.reshape(pixels, SAMPLES, pixels, SAMPLES).sum(axis=(1, 3), dtype=np.int32)[:, :, None]
    cover.flags.writeable = False
    return cover


def _noise(scene: Scene, size: int) -> np.ndarray:
    """Return noise, int16 [S, S, 3], uniform in -noise..noise."""
    name = f"seed_fast.shapes.noise/1/{scene.seed}/{scene.index}/{scene.split}"
    content = hashlib.shake_128(name.encode()).digest(size * size * 3)
    values = np.frombuffer(content, dtype=np.uint8).astype(np.int16).reshape(size, size, 3)
    return (values * (2 * scene.noise + 1) >> 8) - scene.noise
