"""Every kind of image is read as the official code reads it, or as documented; every broken one is one error."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from seed_fast import limits
from seed_fast.data.image_processor import ImageError, load_image
from tests.pictures import broken_files, encoded, good_files, picture, png_of_size

GOOD, BROKEN = good_files(), broken_files()
UNLIKE_OFFICIAL = {"rotated.jpg", "sixteen_bit.png"}


def official_pixels(data: bytes) -> np.ndarray:
    """What the official code makes of an image file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("name", sorted(GOOD.keys() - UNLIKE_OFFICIAL))
def test_pixels_are_those_of_the_official_open_and_convert(name: str) -> None:
    image = load_image(GOOD[name], name)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), official_pixels(GOOD[name]))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    upright = picture(1)
    stored = {  # how a camera held in this orientation stores the upright picture
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    loaded = load_image(encoded(stored, kind, exif=exif, **options))
    assert loaded.size == upright.size
    difference = np.asarray(loaded).astype(int) - np.asarray(upright)
    assert np.abs(difference).mean() < (3 if kind == "JPEG" else 1e-9)


def test_damaged_exif_does_not_cost_the_image() -> None:
    data = encoded(picture(2), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff garbage")
    np.testing.assert_array_equal(np.asarray(load_image(data)), official_pixels(data))


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.array([[0, 128, 257, 32768, 65535]], np.uint16), "PNG"),
        (np.array([[0, 128, 257, 32768, 65535]], np.uint16), "TIFF"),
        (np.array([[0, 128, 257, 32768, 65535]], np.int32), "TIFF"),
        (np.array([[0, 128, 257, 32768, 65535]], np.float32) / 65535, "TIFF"),
        (np.array([[0, 128, 257, 32768, 65535]], np.float32) / 257, "TIFF"),
    ],
)
def test_deep_grayscale_is_scaled_not_clipped(array: np.ndarray, kind: str) -> None:
    loaded = np.asarray(load_image(encoded(Image.fromarray(array), kind)))
    np.testing.assert_array_equal(loaded, np.array([0, 0, 1, 128, 255])[None, :, None].repeat(3, axis=2))


@pytest.mark.parametrize("array", [np.array([[-1, 5]], np.int32), np.array([[0.5, np.nan]], np.float32)])
def test_deep_grayscale_without_a_defined_look_is_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"^depth\.tif: a mode [IF] image must lie in 0\.\."):
        load_image(encoded(Image.fromarray(array), "TIFF"), "depth.tif")


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_file_is_one_error_that_names_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.jpg", "empty"),
        ("text.jpg", "not an image"),
        ("truncated.jpg", "truncated"),
        ("bomb.png", "too many pixels"),
        ("large.png", "too many pixels"),
        ("postscript.png", "not an image"),
    ],
)
def test_the_error_says_what_is_wrong(name: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        load_image(BROKEN[name], name)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    for name, reason in (("pipe", "pipe"), ("folder", "directory"), ("dangling", "no such file"), ("a\0b", "null")):
        with pytest.raises(ImageError, match=reason):
            load_image(tmp_path / f"{name}.jpg")


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(limits.MAX_FILE_BYTES + 1)
    with pytest.raises(ImageError, match=r"sparse\.jpg: expected at most"):
        load_image(tmp_path / "sparse.jpg")


def test_an_open_file_is_named_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_bytes(b"text")
    with open(tmp_path / "text.jpg", "rb") as file, pytest.raises(ImageError, match=r"text\.jpg: not an image"):
        load_image(file)
    with pytest.raises(TypeError, match="source must be a path, bytes or a binary file, got int"):
        load_image(3)


def test_images_are_read_without_torch() -> None:
    """Worker processes import this: torch would cost each of them seconds and hundreds of megabytes."""
    code = "import sys, seed_fast.data.decode; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_mutated_images_are_images_or_image_errors(data: st.DataObject) -> None:
    content = bytearray(GOOD[data.draw(st.sampled_from(sorted(GOOD)))])
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(("set", "cut", "insert", "drop")))
        if kind == "set":
            content[position] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[max(1, position) :]
        elif kind == "insert":
            content[position:position] = data.draw(st.binary(min_size=1, max_size=9))
        elif len(content) > 9:
            del content[position : position + 8]
        content = content or bytearray(b"\0")
    with suppress(ImageError):  # any other exception fails the test
        assert load_image(bytes(content)).mode == "RGB"


def png_with(chunk: bytes, data: bytes, *, crc: int | None = None) -> bytes:
    """A good PNG with one more chunk before its pixels."""
    png = encoded(picture(3), "PNG")
    check = zlib.crc32(chunk + data) if crc is None else crc
    extra = struct.pack(">I", len(data)) + chunk + data + struct.pack(">I", check)
    return png[:33] + extra + png[33:]


@pytest.mark.parametrize(
    ("chunk", "data", "crc"),
    [
        (b"tEXt", b"Comment\0hello", 1),
        (b"zTXt", b"Comment\0\0" + b"no zlib", None),
        (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 << 20)), None),
        (b"iTXt", b"x", 7),
        (b"pHYs", b"short", 3),
    ],
)
def test_a_png_with_a_damaged_remark_is_read(chunk: bytes, data: bytes, crc: int | None) -> None:
    expected = np.asarray(load_image(encoded(picture(3), "PNG")))
    np.testing.assert_array_equal(np.asarray(load_image(png_with(chunk, data, crc=crc))), expected)


def test_a_damaged_file_is_not_called_another_format() -> None:
    png = bytearray(encoded(picture(3), "PNG"))
    png[29] ^= 1  # the checksum of the header
    with pytest.raises(ImageError, match=r"^a\.png: a damaged PNG file: broken PNG file"):
        load_image(bytes(png), "a.png")
    with pytest.raises(ImageError, match=r"^a\.tif: a damaged TIFF file: "):
        load_image(b"II*\0\x08\0\0\0\xff\xff", "a.tif")


def test_the_limit_of_pixels_is_the_one_that_applies() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    for width, height in ((10_000, 10_000), (20_000, 20_000), (60_000, 60_000)):
        with pytest.raises(ImageError, match=rf"^a: too many pixels: {width * height}, the limit is {limit} "):
            load_image(png_of_size(width, height), "a")


@pytest.mark.parametrize("size", [(89_000_000, 1), (1, 89_000_000), ((1 << 20) + 1, 3)])
def test_a_side_that_no_photograph_has_is_refused_with_its_length(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=rf"^a: expected at most 1048576 pixels a side, got {size[0]} x {size[1]}"):
        load_image(png_of_size(*size), "a")


def jpeg_with_scans(times: int, tail: bytes = b"") -> bytes:
    jpeg = encoded(picture(1), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * times + b"\xff\xd9" + tail


def test_a_jpeg_that_repeats_its_scans_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ImageError, match=r"^a: expected a JPEG of at most 100 scans, got more"):
        load_image(jpeg_with_scans(100), "a")
    expected = np.asarray(load_image(encoded(picture(1), "JPEG", progressive=True)))
    assert load_image(jpeg_with_scans(20)).mode == "RGB"
    for good in (jpeg_with_scans(0, b"\xff\xda" * 500), jpeg_with_scans(0, b"a film")):
        np.testing.assert_array_equal(np.asarray(load_image(good)), expected)


def test_a_file_opened_as_text_is_named() -> None:
    with pytest.raises(TypeError, match="must be opened as binary"):
        load_image(io.StringIO("x"))
