"""Image files of every kind that the tokenizer must read, and of every kind that it must refuse. Made, not stored."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 48, height: int = 36) -> Image.Image:
    """A colourful RGB image with smooth and sharp parts, different for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    sharp = Image.fromarray(noise[::-1].copy()).resize((width // 3, height // 2), Image.Resampling.NEAREST)
    smooth.paste(sharp, (width // 4, height // 4))
    return smooth


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def good_files(seed: int = 0) -> dict[str, bytes]:
    """File name to content: one image of each kind, all different."""
    rgb = picture(seed)
    alpha = Image.fromarray(np.linspace(0, 255, rgb.width * rgb.height).reshape(rgb.height, -1).astype(np.uint8))
    with_alpha, gray, gray_alpha = rgb.copy(), rgb.convert("L"), rgb.convert("LA")
    with_alpha.putalpha(alpha)
    gray_alpha.putalpha(alpha)
    palette = rgb.quantize(32)
    frames = [picture(seed + 1000 + number) for number in range(3)]
    upright = Image.Exif()
    upright[0x0112] = 6
    deep = np.asarray(gray).astype(np.uint16) * 257
    return {
        "rgb.jpg": encoded(rgb, "JPEG", quality=95),
        "progressive.jpeg": encoded(rgb, "JPEG", progressive=True),
        "rotated.jpg": encoded(rgb, "JPEG", exif=upright),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "gray.jpg": encoded(gray, "JPEG"),
        "rgb.png": encoded(rgb, "PNG"),
        "alpha.png": encoded(with_alpha, "PNG"),
        "gray.png": encoded(gray, "PNG"),
        "gray_alpha.png": encoded(gray_alpha, "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "palette_transparent.png": encoded(palette, "PNG", transparency=bytes(range(0, 256, 8))),
        "one_bit.png": encoded(gray.convert("1"), "PNG"),
        "sixteen_bit.png": encoded(Image.fromarray(deep), "PNG"),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.png": encoded(frames[1], "PNG", save_all=True, append_images=frames[:1]),
        "lossy.webp": encoded(rgb, "WEBP"),
        "plain.bmp": encoded(rgb, "BMP"),
        "plain.tiff": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "plain.ppm": encoded(rgb, "PPM"),
        "narrow.png": encoded(rgb.resize((300, 2)), "PNG"),
        "one_pixel.png": encoded(rgb.resize((1, 1)), "PNG"),
    }


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its few bytes of data don't fill: how a decompression bomb begins."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def broken_files(seed: int = 0) -> dict[str, bytes]:
    """File name to content: one of each kind of file that is no usable image."""
    rgb = picture(seed)
    jpeg, png = encoded(rgb, "JPEG"), encoded(rgb, "PNG")
    scrambled = bytearray(png)
    middle = len(png) // 2
    scrambled[middle : middle + 40] = bytes(40)
    return {
        "empty.jpg": b"",
        "text.jpg": b"This is not an image.\n",
        "page.png": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "truncated.png": png[: len(png) // 2],
        "only_signature.png": png[:8],
        "scrambled.png": bytes(scrambled),
        "truncated.webp": encoded(rgb, "WEBP")[:40],
        "truncated.tif": encoded(rgb, "TIFF")[:60],
        "bomb.png": png_of_size(30_000, 30_000),
        "large.png": png_of_size(10_000, 10_000),  # between Pillow's warning and its error
        "no_width.png": png_of_size(0, 10),
        "no_height.png": png_of_size(10, 0),
        "no_pixels.ppm": b"P6 0 5 255\n",
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "random.gif": np.random.default_rng(seed).bytes(500),
    }


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files, and the folders in their names."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
