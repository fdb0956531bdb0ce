"""Samples of pictures and captions: small descriptions that are sent to workers, which read and decode them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from seed_fast import limits
from seed_fast._remarks import named_remarks
from seed_fast._text import decode_text, name_bytes, parse_json, shown
from seed_fast.data import shapes
from seed_fast.data.augment import may_flip, random_crop
from seed_fast.data.decode import too_slow_error
from seed_fast.data.image_processor import ImageError, ImageProcessor, load_image
from seed_fast.data.pool import Pool
from seed_fast.data.shards import Entry, read_entry

IMAGE_KEYS = ("image", "file_name", "filepath")
CAPTION_KEYS = ("caption", "captions", "text")


class SampleError(ValueError):
    """A sample that cannot be used. The message starts with its name."""


@dataclass(frozen=True)
class View:
    """The way to load samples in one epoch: size, augmentation, choice of caption."""

    processor: ImageProcessor
    seed: int
    epoch: int
    augment: bool  # random crops and flips, where the kind of data allows it
    random_caption: bool  # True: draw one of several captions; False: take the first
    all_captions: bool

    def draws(self, key: str) -> random.Random:
        """Return a random generator for one sample: the same on any rank and in any worker."""
        name = f"{self.seed}/{self.epoch}/{key}"
        return random.Random(int.from_bytes(hashlib.blake2b(name_bytes(name), digest_size=16).digest(), "little"))


class Loaded(NamedTuple):
    """A sample ready to be put into a batch, or the reason why there is none."""

    key: str
    pixels: np.ndarray | None  # uint8 [S, S, 3]
    captions: tuple[str, ...]
    error: str | None  # one line that names the sample


class Sample(Protocol):
    """A sample of a source that isn't loaded yet."""

    @property
    def key(self) -> str:
        """Name of the sample, unique within the data set."""

    def load(self, view: View) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return (pixels uint8 [S, S, 3], captions): all captions, or the one that the view chooses.

        Raises:
            ImageError, SampleError: it can't be used.
        """


def load(sample: Sample, view: View) -> Loaded:
    """Read and decode a sample. An error that concerns it alone is returned, not raised."""
    try:
        with named_remarks(sample.key):
            return Loaded(sample.key, *sample.load(view), None)
    except (ImageError, SampleError) as error:
        return Loaded(sample.key, None, (), str(error))
    except MemoryError:
        return Loaded(sample.key, None, (), f"{sample.key}: there is no memory to read or decode it")


def map_samples(pool: Pool, samples: Iterable[Sample], view: View) -> Generator[Loaded, None, None]:
    """Yield every sample loaded by a pool, in order. One that takes too long becomes an error of that sample."""
    return pool.map(partial(load, view=view), samples, _key, too_slow=_too_slow)


def _key(sample: Sample) -> str:
    return sample.key


def _too_slow(sample: Sample, seconds: float) -> Loaded:
    return Loaded(sample.key, None, (), too_slow_error(sample.key, seconds))


@dataclass(frozen=True)
class FileSample:
    """An image file, or a member of a shard, with captions at hand or in a file of their own."""

    key: str
    image: Entry | None
    captions: tuple[str, ...] = ()
    text: Entry | None = None  # .txt: the caption; .json: an object with one of CAPTION_KEYS
    problem: str | None = None  # why the list it comes from gives nothing usable

    def load(self, view: View) -> tuple[np.ndarray, tuple[str, ...]]:
        """See `Sample`."""
        if self.problem:
            raise SampleError(f"{self.key}: {self.problem}")
        if self.image is None:
            raise SampleError(f"{self.key}: no image belongs to this caption")
        draws = view.draws(self.key)
        captions = self.read_captions()
        if not view.all_captions:
            captions = (captions[int(draws.random() * len(captions)) if view.random_caption else 0],)
        image = load_image(read_entry(self.image), self.image.path)
        if not view.augment:
            return view.processor.resize_uint8(image, self.image.path), captions
        cropped = random_crop(image, view.processor.image_size, draws.random, flip=all(map(may_flip, captions)))
        return np.asarray(cropped), captions

    def read_captions(self) -> tuple[str, ...]:
        """Read all captions, without the picture.

        Raises:
            ImageError, SampleError: there is none, or it can't be read.
        """
        if self.problem:
            raise SampleError(f"{self.key}: {self.problem}")
        if self.captions:
            return self.captions
        if self.text is None:
            raise SampleError(f"{self.key}: no caption belongs to this image")
        content = read_entry(self.text)
        try:
            if len(content) > limits.MAX_LINE_BYTES:
                raise ValueError(f"expected at most {limits.MAX_LINE_BYTES} bytes, got {len(content)}")
            if not self.text.path.lower().endswith(".json"):
                return clean_captions(decode_text(content))
            return captions_of(parse_json(content))
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are
            raise SampleError(f"{self.text.path}: {error}") from None


@dataclass(frozen=True)
class ShapesSample:
    """A generated picture, drawn at the size asked for; never cropped or mirrored: its caption tells positions."""

    seed: int
    index: int
    split: str
    family: int = 1  # so many scenes in a row are siblings of the first

    @property
    def key(self) -> str:
        of = f"/family={self.family}" if self.family > 1 else ""
        return f"shapes:{self.split}/{self.seed}/{self.index}{of}"

    @classmethod
    def of_key(cls, key: str) -> ShapesSample:
        """Return the sample that has this key."""
        split, seed, index, *family = key.removeprefix("shapes:").split("/")
        return cls(int(seed), int(index), split, int(family[0].removeprefix("family=")) if family else 1)

    @property
    def scene(self) -> shapes.Scene:
        """The scene that the picture shows."""
        other = self.index % self.family
        scene = shapes.scene(self.seed, self.index - other, self.split)
        return shapes.sibling(scene, self.index) if other else scene

    def load(self, view: View) -> tuple[np.ndarray, tuple[str, ...]]:
        """See `Sample`."""
        scene = self.scene
        return shapes.render(scene, view.processor.image_size), (shapes.caption(scene),)


def captions_of(record: Any) -> tuple[str, ...]:
    """Return the captions of a JSON record.

    Raises:
        ValueError: the record is no object, or has no captions.
    """
    if not isinstance(record, dict):
        raise ValueError(f"expected an object with {' or '.join(CAPTION_KEYS)}, got {type(record).__name__}")
    for key in CAPTION_KEYS:
        if key in record:
            return clean_captions(record[key])
    raise ValueError(f"expected {' or '.join(CAPTION_KEYS)}, got {', '.join(map(str, list(record)[:5])) or 'nothing'}")


def clean_captions(value: Any) -> tuple[str, ...]:
    """Return a caption, or a list of captions, as a tuple without blank ones; runs of white space become single spaces.

    Raises:
        ValueError: no caption is left, or one is no text.
    """
    values = value if isinstance(value, list) else [value]
    for each in values:
        if not isinstance(each, str):
            raise ValueError(f"a caption must be text, got {shown(each)}")
        if any("\ud800" <= character <= "\udfff" for character in each):
            raise ValueError(f"a caption must be text that UTF-8 can hold, got {shown(each)}")
    captions = tuple(filter(None, (" ".join(each.split()) for each in values)))
    if not captions:
        raise ValueError("the caption is empty")
    return captions
