"""The three ways to resize that official models use, with torchvision's rounding, on Pillow images."""

from __future__ import annotations

from typing import Literal

from PIL import Image

ResizeMode = Literal["bicubic", "bilinear", "bilinear_crop"]


def resize_image(image: Image.Image, size: int, mode: ResizeMode) -> Image.Image:
    """Resize an RGB image of any size to `size` x `size` px.

    "bicubic" and "bilinear" are torchvision's `Resize((size, size))`; "bilinear_crop" is `Resize(size)` then
    `CenterCrop(size)`. On Pillow images all of them antialias.

    Raises:
        ValueError: "bilinear_crop" of an image so narrow that its resized long side would exceed Pillow's pixel limit.
    """
    if mode == "bilinear_crop":
        return _center_crop(_resize_short_side(image, size), size)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    return image.resize((size, size), filters[mode])


def _resize_short_side(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    long_side = int(size * max(width, height) / min(width, height))  # torchvision rounds down
    if Image.MAX_IMAGE_PIXELS is not None and size * long_side > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{width} x {height} is too narrow: a short side of {size} px makes {size * long_side} pixels")
    target = (size, long_side) if width <= height else (long_side, size)
    return image if target == image.size else image.resize(target, Image.Resampling.BILINEAR)


def _center_crop(image: Image.Image, size: int) -> Image.Image:
    left = round((image.width - size) / 2.0)  # half to even, as torchvision
    top = round((image.height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))
