"""Decoding, resizing and normalising images for the SEED tokenizers, bit for bit as torchvision does on Pillow images.

`load_image` opens anything a data set holds and returns an RGB image or one clear `ImageError`; `ImageProcessor`
resizes and normalises. Workers of `seed-fast tokenize` import this file, so torch is imported only where pixels become
a tensor.

Against the official `Image.open(path).convert("RGB")`, on purpose:
- EXIF orientation is applied (officially it is ignored: a photograph held upright is tokenised lying).
- 16-bit, 32-bit and float grayscale is scaled to 8 bits (Pillow clips: most of a 16-bit scan becomes white).
Everything else is that call: alpha of RGBA, LA and palette images is dropped without blending, an animation gives its
first frame.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from typing import TYPE_CHECKING, Any, BinaryIO, get_args

import numpy as np
from PIL import Image

from seed_fast import limits
from seed_fast.data.resize import ResizeMode, resize_image

if TYPE_CHECKING:
    import torch

# CLIP's statistics, per channel of RGB in [0, 1] (official configs/transform/clip_transform.yaml).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# Only formats with a signature: Pillow takes arbitrary bytes for a TGA or PCX, and EPS would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "ICO", "QOI")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Optional chunks that change the picture: transparency, orientation, frames.
_PNG_NEEDED = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # what isn't data of a scan
_SCAN, _END = b"\xff\xda", b"\xff\xd9"
_WITHOUT_CONTENT = (b"\xff\xd8", b"\xff\x01")
_ROWS = 256  # rows of deep grayscale that are converted at a time

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """An image that cannot be used. The message starts with the image's name."""


def read_bytes(path: str | os.PathLike[str], name: str | None = None) -> bytes:
    """Read the content of a regular file.

    Args:
        path: the file.
        name: name of the image in errors; default: its path.

    Raises:
        ImageError: missing, unreadable, empty, larger than `limits.MAX_FILE_BYTES`, or not a regular file (opening a
            pipe would wait forever).
    """
    name = name or os.fspath(path)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name}: expected an image file, got a directory")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name}: expected a regular file, got a pipe, socket or device")
        if status.st_size > limits.MAX_FILE_BYTES:
            raise ImageError(f"{name}: expected at most {limits.MAX_FILE_BYTES} bytes, got {status.st_size}")
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def load_image(source: str | os.PathLike[str] | bytes | BinaryIO, name: str | None = None) -> Image.Image:
    """Open and decode one image: upright, RGB, 8 bits per channel.

    Args:
        source: a path, the bytes of an image file, or an open binary file.
        name: name of the image in errors; default: the path, or "image".

    Returns:
        A loaded Pillow image of mode RGB.

    Raises:
        ImageError: the image can't be used: missing, empty, truncated, not an image, a decompression bomb (more
            pixels than `PIL.Image.MAX_IMAGE_PIXELS`), no pixels, values without a defined look. Exceptions of Pillow
            become this one.

    Examples:
        >>> load_image(b"not an image", name="a.jpg")
        Traceback (most recent call last):
        seed_fast.data.image_processor.ImageError: a.jpg: not an image of a supported format (JPEG, PNG, ...)
    """
    # The bytes of the file, whatever stands for it.
    if isinstance(source, (str, os.PathLike)):
        name = name or os.fspath(source)
        data = read_bytes(source, name)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif hasattr(source, "read"):
        name = name or getattr(source, "name", None)
        data = source.read()
        if not isinstance(data, bytes):
            raise TypeError(
                f"load_image: a file must be opened as binary ('rb'), got one that reads {type(data).__name__}"
            )
    else:
        raise TypeError(f"load_image: source must be a path, bytes or a binary file, got {type(source).__name__}")
    name = str(name or "image")
    if not data:
        raise ImageError(f"{name}: the file is empty (0 bytes)")
    try:
        # Decode it; if a PNG fails, once more without its text chunks.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged EXIF block or text chunk says nothing about the pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            _check_scans(data, name)
            try:
                return _decode(data, name)
            except (Image.DecompressionBombError, Image.DecompressionBombWarning):
                raise
            except Exception:
                readable = _without_remarks(data)
                if readable is None:
                    raise
            return _decode(readable, name)
    # Whatever decoders raise becomes one line that names the image.
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found = re.search(r"\d+", str(error))  # Pillow speaks of twice its limit
        raise ImageError(_too_many_pixels(name, found[0] if found else str(error))) from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: {_why_unidentified(data)}") from None
    except Exception as error:  # as in to_rgb, for the headers
        raise ImageError(f"{name}: cannot be decoded: {_reason(error)}") from error


def _decode(data: bytes, name: str) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        return to_rgb(image, name)


def _formats() -> list[str]:
    if not Image.ID:
        Image.preinit()
    Image.init()
    return [kind for kind in FORMATS if kind in Image.OPEN]


def _reason(error: Exception) -> str:
    """Return one line about an exception of a decoder, whose own text may be empty or long."""
    return " ".join(str(error).split()) or ("no memory" if isinstance(error, MemoryError) else type(error).__name__)


def _why_unidentified(data: bytes) -> str:
    """Return why no plugin of Pillow opens a file: Pillow drops the message of the one that tried."""
    for kind in _formats():
        factory, accept = Image.OPEN[kind]
        try:
            if accept is None or accept(data[:16]) is not True:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                factory(io.BytesIO(data), "").close()
        except Exception as error:  # noqa: BLE001 - as in to_rgb
            return f"a damaged {kind} file: {_reason(error)}"
    return f"not an image of a supported format ({', '.join(FORMATS)})"


def _without_remarks(data: bytes) -> bytes | None:
    """Return a PNG without its text chunks, whose damage makes Pillow refuse the file; None if it has none."""
    if not data.startswith(_PNG_SIGNATURE):
        return None
    kept, position = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while position + 8 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if kind[:1].isupper() or kind in _PNG_NEEDED:
            kept.append(data[position:end])
        position = end
    readable = b"".join(kept)
    return readable if len(readable) < len(data) else None


def _check_scans(data: bytes, name: str) -> None:
    """Refuse a JPEG with too many scans: each may have a few bytes, and takes as long as the whole image."""
    if not data.startswith(b"\xff\xd8") or data.count(_SCAN) <= limits.MAX_SCANS:
        return
    scans = position = 0
    while marker := _JPEG_MARKER.search(data, position):
        position = marker.end()
        if marker[0] == _END:
            return  # what follows, such as a film, is no part of the image
        scans += marker[0] == _SCAN
        if scans > limits.MAX_SCANS:
            raise ImageError(f"{name}: expected a JPEG of at most {limits.MAX_SCANS} scans, got more")
        if marker[0] not in _WITHOUT_CONTENT:
            position += int.from_bytes(data[position : position + 2], "big")


def to_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """Turn an opened Pillow image of any mode into an upright RGB image (the top of this file says what that means).

    Raises:
        ImageError: it has no pixels, or its mode or values have no defined look.
    """
    _check_size(image, name)
    try:
        image.load()
        upright = _UPRIGHT.get(_orientation(image))
        if upright is not None:
            image = image.transpose(upright)
        if image.mode.startswith("I") or image.mode == "F":
            image = _to_8_bit(image, name)
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        if upright is not None:
            rgb.info = {}  # it holds the orientation, which must not be applied twice
        return rgb
    except ImageError:
        raise
    except Exception as error:  # decoders raise whatever they like on foreign bytes: struct.error, KeyError, ...
        raise ImageError(f"{name}: cannot be decoded: {_reason(error)}") from error


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: the image has no pixels ({width} x {height})")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ImageError(_too_many_pixels(name, f"{width} x {height}"))
    if max(width, height) > limits.MAX_SIDE:
        raise ImageError(f"{name}: expected at most {limits.MAX_SIDE} pixels a side, got {width} x {height}")


def _too_many_pixels(name: str, got: str) -> str:
    limit = Image.MAX_IMAGE_PIXELS
    return f"{name}: too many pixels: {got}, the limit is {limit} (PIL.Image.MAX_IMAGE_PIXELS; decompression bomb?)"


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # noqa: BLE001 - damaged metadata: the pixels are as good as without it
        return None


def _to_8_bit(image: Image.Image, name: str) -> Image.Image:
    """Turn deep grayscale into mode L. Full scale: 65535 for integers; for floats 1, or 255 if any value exceeds 1."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    full_scale = 65535.0 if image.mode != "F" else 1.0 if high <= 1 else 255.0
    if not (low >= 0 and high <= full_scale):  # false for NaN
        raise ImageError(f"{name}: a mode {image.mode} image must lie in 0..{full_scale:g}, got {low:g}..{high:g}")
    scaled = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), _ROWS):  # float64 takes eight times the memory
        rows = slice(top, top + _ROWS)
        scaled[rows] = np.rint(values[rows].astype(np.float64) * (255.0 / full_scale))
    return Image.fromarray(scaled)


class ImageProcessor:
    """Resizes and normalises images as the official transforms do.

    Args:
        image_size: side S of the square result, px.
        resize: "bicubic" and "bilinear" stretch to S x S; "bilinear_crop" resizes the short side to S and cuts the
            middle. The same file has different codes under each: official `ImageTokenizer.encode_image` uses "bicubic",
            clip_transform.yaml "bilinear" (keep_ratio False) and "bilinear_crop" (keep_ratio True).

    Examples:
        >>> pixels = ImageProcessor(224, "bicubic")(Image.new("RGB", (640, 480)))
        >>> pixels.shape
        torch.Size([1, 3, 224, 224])
    """

    def __init__(self, image_size: int = 224, resize: ResizeMode = "bicubic") -> None:
        if not isinstance(image_size, int) or isinstance(image_size, bool) or image_size < 1:
            raise ValueError(f"ImageProcessor: image_size must be a positive integer, got {image_size!r}")
        if resize not in get_args(ResizeMode):
            raise ValueError(f"ImageProcessor: resize must be one of {', '.join(get_args(ResizeMode))}, got {resize!r}")
        self.image_size = image_size
        self.resize = resize

    def __repr__(self) -> str:
        return f"ImageProcessor(image_size={self.image_size}, resize={self.resize!r})"

    def resize_uint8(self, image: Image.Image, name: str = "image") -> np.ndarray:
        """Resize one Pillow image of any mode to uint8 [S, S, 3].

        Raises:
            ImageError: it cannot be shown as RGB, or is so narrow that its resized long side would be a bomb.
        """
        image = to_rgb(image, name)
        try:
            return np.asarray(resize_image(image, self.image_size, self.resize))
        except (ValueError, MemoryError) as error:
            width, height = image.size
            raise ImageError(f"{name}: cannot be resized: {_reason(error)} ({width} x {height} px)") from error

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn uint8 [B, S, S, 3] on any device into normalised float32 [B, 3, S, S] on the same device.

        The operations and their order are those of ToTensor and Normalize, so the result is equal to theirs in every
        bit. The divisor 255 is a tensor because CUDA multiplies by the reciprocal of a Python number.
        """
        import torch

        def per_channel(values: tuple[float, ...]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=pixels.device).view(-1, 1, 1)

        floats = pixels.permute(0, 3, 1, 2).contiguous().to(torch.float32)
        return floats.div_(per_channel((255.0,))).sub_(per_channel(MEAN)).div_(per_channel(STD))

    def __call__(self, images: Any) -> torch.Tensor:
        """Turn images into normalised pixels, float32 [B, 3, S, S] on the CPU.

        Args:
            images: one image or a list: Pillow images, paths, image files (bytes, or opened as binary), uint8 arrays or
                tensors [H, W, 3] or [3, H, W]. A float tensor [B, 3, S, S] is taken as already normalised and returned
                as it is, with a warning if its values look like pixels that are not normalised.

        Raises:
            ImageError: an image that cannot be used.
            TypeError, ValueError: an item is no image.
        """
        import torch

        side = self.image_size
        if isinstance(images, torch.Tensor) and images.is_floating_point():
            if images.ndim != 4 or tuple(images.shape[1:]) != (3, side, side):
                shape = list(images.shape)
                raise ValueError(f"ImageProcessor: float pixels must be [B, 3, {side}, {side}], got {shape}")
            _warn_if_not_normalised(images)
            return images
        batch = list(images) if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4 else [images]
        resized = np.empty((len(batch), side, side, 3), dtype=np.uint8)
        for index, image in enumerate(batch):
            resized[index] = self.resize_uint8(*_opened(image, f"image {index}"))
        return self.normalize(torch.from_numpy(resized))


def _opened(image: Any, name: str) -> tuple[Image.Image, str]:
    """Return (Pillow image, its name) for anything that `ImageProcessor` accepts."""
    if isinstance(image, Image.Image):
        return image, getattr(image, "filename", None) or name
    if isinstance(image, (str, os.PathLike)):
        return load_image(image), os.fspath(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return load_image(bytes(image), name), name
    if hasattr(image, "shape") and hasattr(image, "dtype"):
        array = np.asarray(image.cpu() if hasattr(image, "cpu") else image)
        if array.dtype != np.uint8 or array.ndim != 3 or 3 not in array.shape[::2] or 0 in array.shape:
            got = f"{array.dtype} {list(array.shape)}"
            raise ValueError(f"{name}: an array must be uint8 [H, W, 3] or [3, H, W], got {got}")
        if array.shape[2] != 3:  # channels first, as torchvision reads
            array = array.transpose(1, 2, 0)
        return Image.fromarray(np.ascontiguousarray(array)), name
    if hasattr(image, "read"):
        name = getattr(image, "name", None) or name
        return load_image(image, str(name)), str(name)
    raise TypeError(
        f"{name}: expected a Pillow image, a path, bytes, an open file or a uint8 array [H, W, 3], "
        f"got {type(image).__name__}"
    )


def _warn_if_not_normalised(pixels: torch.Tensor) -> None:
    """Warn about pixels in 0..1 or 0..255: their codes would be wrong, and nothing else would tell.

    Pixels on a GPU are not looked at, since the host would wait for them; nor are those of a trace, which have no
    values.
    """
    import torch

    first = pixels[:1]
    if first.device.type != "cpu" or torch.compiler.is_compiling() or not first.numel():
        return
    low, high = (float(value) for value in first.aminmax())
    if low < 0 or low == high or 1 < high < 3:  # normalised white is 2.15 at most
        return
    warnings.warn(
        "ImageProcessor: float pixels must be normalised with CLIP's mean and deviation (-1.8..2.15), got "
        f"{low:.3g}..{high:.3g}: give uint8 images, or what ImageProcessor.normalize makes of uint8 [B, S, S, 3]",
        stacklevel=4,
    )
