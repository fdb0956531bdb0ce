"""Training augmentation of the tokenizer: RandomResizedCrop(S, scale (0.5, 1), bicubic) and a horizontal flip.

Source: official configs of the tokenizer's training data; the crop is torchvision's RandomResizedCrop.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from PIL import Image

SCALE = (0.5, 1.0)  # share of the picture's area
RATIO = (3 / 4, 4 / 3)  # width to height
_TRIES = 10
_SIDED = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def may_flip(caption: str) -> bool:
    """Return True if a caption stays true when its picture is mirrored: it says neither "left" nor "right"."""
    return not _SIDED.search(caption)


def random_crop(image: Image.Image, size: int, draw: Callable[[], float], *, flip: bool) -> Image.Image:
    """Cut a random part out of an RGB image and resize it to `size` x `size` px.

    Args:
        draw: function that returns a random number in [0, 1) at each call.
        flip: True: mirror the result with probability 1/2. The same numbers are drawn either way.
    """
    image = image.crop(_box(*image.size, draw)).resize((size, size), Image.Resampling.BICUBIC)
    mirrored = draw() < 0.5
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip and mirrored else image


def _box(width: int, height: int, draw: Callable[[], float]) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of a random part, px."""
    for _ in range(_TRIES):
        area = width * height * (SCALE[0] + (SCALE[1] - SCALE[0]) * draw())
        ratio = math.exp(math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * draw())
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, top = int((width - across + 1) * draw()), int((height - down + 1) * draw())
            return left, top, left + across, top + down
    # A very long picture: its middle, at the nearest ratio that is allowed.
    across, down = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + max(across, 1), top + max(down, 1)
