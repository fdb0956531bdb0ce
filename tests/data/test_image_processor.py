"""Resizing and normalising are those of the official transforms, to the last bit."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seed_fast.data.image_processor import ImageError, ImageProcessor, load_image
from tests.pictures import encoded, picture

OFFICIAL_NAMES = {"bicubic": "bicubic_square", "bilinear": "bilinear_square", "bilinear_crop": "bilinear_keep"}


@pytest.fixture(scope="module")
def official() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[1] / "golden" / "golden_preproc.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("resize", OFFICIAL_NAMES)
def test_resize_equals_official_in_every_bit(resize: str, official: dict[str, np.ndarray]) -> None:
    image = Image.fromarray(official["in/image_u8"])
    ours = ImageProcessor(224, resize).resize_uint8(image)
    np.testing.assert_array_equal(ours, official[f"out/{OFFICIAL_NAMES[resize]}_u8"])


@pytest.mark.parametrize("resize", OFFICIAL_NAMES)
def test_normalised_pixels_equal_official_in_every_bit(resize: str, official: dict[str, np.ndarray]) -> None:
    pixels = ImageProcessor(224, resize)(Image.fromarray(official["in/image_u8"]))
    name = f"out/{OFFICIAL_NAMES[resize]}"
    assert (pixels.dtype, pixels.shape) == (torch.float32, (1, 3, 224, 224))
    np.testing.assert_array_equal(pixels[0, :, 100:116, 100:116].numpy(), official[f"{name}_norm_crop"])
    np.testing.assert_array_equal(pixels[0].double().sum((1, 2)).numpy(), official[f"{name}_norm_sum"])


@pytest.mark.parametrize(("width", "height"), [(31, 97), (97, 31), (224, 224), (225, 224), (300, 1), (224, 451)])
def test_crop_keeps_the_aspect_ratio_and_torchvisions_rounding(width: int, height: int) -> None:
    """Against the rule written out: short side to S, long side rounded down, offsets rounded half to even."""
    image = picture(3).resize((width, height))
    long_side = int(224 * max(width, height) / min(width, height))
    size = (224, long_side) if width <= height else (long_side, 224)
    left, top = (round((side - 224) / 2.0) for side in size)
    expected = np.asarray(image.resize(size, Image.Resampling.BILINEAR))[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(ImageProcessor(224, "bilinear_crop").resize_uint8(image), expected)


def test_crop_of_an_extremely_narrow_image_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(ImageError, match=r"^strip\.png: .*too narrow"):
        ImageProcessor(224, "bilinear_crop").resize_uint8(Image.new("RGB", (1_000_000, 1)), "strip.png")


def test_every_accepted_form_of_an_image_gives_the_same_pixels(tmp_path: Path) -> None:
    image = picture(5)
    path = tmp_path / "image.png"
    image.save(path)
    array = np.asarray(image)
    processor = ImageProcessor(32)
    expected = processor(image)
    for form in (path, str(path), path.read_bytes(), array, torch.from_numpy(array.copy()), [image], array[None]):
        assert torch.equal(processor(form), expected), type(form)
    mixed = processor([image, path, array])
    assert torch.equal(mixed, expected.expand(3, -1, -1, -1))
    assert processor(expected) is expected, "normalised pixels pass through"


def test_orientation_is_applied_once_whoever_opens_the_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "rotated.jpg"
    path.write_bytes(encoded(picture(6), "JPEG", exif=exif))
    processor = ImageProcessor(32)
    expected = np.asarray(
        Image.open(path).transpose(Image.Transpose.ROTATE_270).resize((32, 32), Image.Resampling.BICUBIC)
    )
    for image in (Image.open(path), load_image(path)):
        np.testing.assert_array_equal(processor.resize_uint8(image), expected)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (
            np.zeros((4, 4, 3), np.float32),
            ValueError,
            r"image 0: an array must be uint8 \[H, W, 3\] or \[3, H, W\], got float32 \[4, 4, 3\]",
        ),
        (np.zeros((4, 4), np.uint8), ValueError, r"got uint8 \[4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"got uint8 \[0, 4, 3\]"),
        (torch.zeros(2, 3, 9, 9), ValueError, r"float pixels must be \[B, 3, 8, 8\], got \[2, 3, 9, 9\]"),
        ([picture(1), 7], TypeError, "image 1: expected a Pillow image, .*, got int"),
        ("missing.png", ImageError, "^missing.png: no such file"),
    ],
)
def test_what_is_no_image_is_named(wrong: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ImageProcessor(8)(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"), [((0,), "image_size"), ((8, "nearest"), "resize must be one of bicubic")]
)
def test_wrong_settings_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=f"ImageProcessor: {message}"):
        ImageProcessor(*arguments)


def test_open_files_and_channels_first_are_images(tmp_path: Path) -> None:
    image = picture(2)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image, "PNG"))
    processor = ImageProcessor(16)
    expected = processor(image)
    first = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    with open(path, "rb") as file:
        for form in (file, io.BytesIO(path.read_bytes()), [io.BytesIO(path.read_bytes())], first, first[None]):
            assert torch.equal(processor(form), expected), type(form)
    with pytest.raises(ImageError, match=r"image 0: not an image"):
        processor(io.BytesIO(b"text"))
    tall = np.zeros((3, 9, 3), np.uint8)  # three rows: as it always was
    assert torch.equal(processor(tall), processor(Image.fromarray(tall)))


def test_floats_that_are_not_normalised_are_warned_of() -> None:
    processor = ImageProcessor(16)
    normalised = processor(picture(2))
    raw = torch.from_numpy(np.asarray(picture(2).resize((16, 16))).copy()).permute(2, 0, 1)[None]
    for pixels in (raw / 255, raw.float()):
        with pytest.warns(UserWarning, match="float pixels must be normalised"):
            assert processor(pixels) is pixels
    for pixels in (normalised, torch.zeros_like(normalised), torch.randn(1, 3, 16, 16), normalised[:0]):
        assert processor(pixels) is pixels  # a warning would fail the test
