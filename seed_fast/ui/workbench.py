"""What the page can do, without the page: every function takes what a person typed or dropped and returns values.

One workbench serves all visitors, so its models are used by one request at a time.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from seed_fast.data.image_processor import load_image
from seed_fast.lm.model import LanguageModel
from seed_fast.model.tokenizer import SeedTokenizer

MAX_SHOWN = 512  # px: longer sides of an uploaded picture are shown smaller
MAX_CAPTION = 1000  # characters
DECODER_NEEDED = (
    "this page was started without a diffusion model, which pictures of codes need: a Stable unCLIP 2.1 for SEED-2, "
    "a Stable Diffusion 1.4 for SEED-1, as diffusers saves them"
)
LANGUAGE_MODEL_NEEDED = "this page was started without a language model that has learned the codes, which captions need"


class Encoded(NamedTuple):
    """An uploaded picture, not larger than `MAX_SHOWN`, and its codes."""

    picture: Image.Image
    codes: list[int]


class Near(NamedTuple):
    """A code, its position, and the codes whose codebook entries are nearest to its own, with their distances."""

    position: int
    code: int
    nearest: list[tuple[int, float]]


class Workbench:
    """A tokenizer, and what turns its codes into pictures and captions into codes, where they are at hand.

    Args:
        tok: the tokenizer.
        pipeline: the diffusion pipeline that `seed_fast.generate.pictures.open_pipeline` returns; None: no pictures.
        lm: a language model that has learned the tokenizer's codes; None: no captions.
        seed: seed of the initial noise, the same for every picture, so that only codes make a difference.
    """

    def __init__(
        self,
        tok: SeedTokenizer,
        pipeline: Any = None,
        lm: LanguageModel | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.tok, self.pipeline, self.lm = tok, pipeline, lm
        self._seed = seed
        self._lock = threading.Lock()

    @property
    def num_codes(self) -> int:
        """Codes of an image, N."""
        return self.tok.config.num_codes

    @property
    def can_draw(self) -> bool:
        """True if there is a diffusion model, so that codes can become pictures."""
        return self.pipeline is not None

    def read(self, path: str | Path) -> Encoded:
        """Decode and tokenise a picture file.

        Raises:
            ValueError: the file is no picture that can be used, or has no codes; one line that names it.
        """
        name = Path(path).name
        picture = load_image(path, name)
        with self._lock:
            codes = self.tok.encode([picture])[0].tolist()
        picture.thumbnail((MAX_SHOWN, MAX_SHOWN))
        return Encoded(picture, codes)

    def codes(self, text: str) -> list[int]:
        """Read the codes of one image as a person types them: N integers between spaces, commas or brackets.

        Raises:
            ValueError: other characters, another number of codes, or a code outside the codebook.
        """
        strange = re.search(r"[^\d\s,\[\]]", text)
        if strange:
            raise ValueError(f"codes must be integers between spaces, got {strange[0]!r}")
        codes = [int(word) for word in re.findall(r"\d{1,9}", text)]
        if len(codes) != self.num_codes:
            raise ValueError(f"an image has {self.num_codes} codes, got {len(codes)}")
        for position, code in enumerate(codes):
            self._check_code(position, code)
        return codes

    def with_code(self, codes: list[int], position: int, code: int) -> list[int]:
        """Return the codes with another one at a position, 0 to N - 1.

        Raises:
            ValueError: there is no such position, or no such code.
        """
        if not 0 <= position < len(codes):
            raise ValueError(f"position must be 0 to {len(codes) - 1}, got {position}")
        self._check_code(position, code)
        return [*codes[:position], code, *codes[position + 1 :]]

    def nearest(self, codes: list[int], count: int = 5) -> list[Near]:
        """Return, for every code, the other codes whose codebook entries are nearest to its own, nearest first."""
        with self._lock, torch.inference_mode():
            codebook = self.tok.quantizer.codebook.double()
            found = torch.cdist(codebook[codes], codebook).topk(count + 1, largest=False)
        rows = zip(codes, found.indices.tolist(), found.values.tolist(), strict=True)
        return [
            Near(position, code, [near for near in zip(ids, distances, strict=True) if near[0] != code][:count])
            for position, (code, ids, distances) in enumerate(rows)
        ]

    def picture(self, codes: list[int], prefix: int | None = None) -> Image.Image:
        """Draw codes, or what the first `prefix` of them say; see `decode_prefix`.

        Raises:
            ValueError: there is no diffusion model; the message says which one is needed.
        """
        if not self.can_draw:
            raise ValueError(DECODER_NEEDED)
        from seed_fast.generate.editing import decode_prefix
        from seed_fast.generate.pictures import render_embeddings

        length = self.num_codes if prefix is None else prefix
        with self._lock:
            embeddings = decode_prefix(self.tok, [codes], length)
            (picture,) = render_embeddings(self.pipeline, embeddings, [self._seed])
        return picture

    def draw(self, caption: str) -> list[int]:
        """Let the language model write the codes of an image for a caption.

        Raises:
            ValueError: there is no language model, or the caption is empty or too long.
        """
        if self.lm is None:
            raise ValueError(LANGUAGE_MODEL_NEEDED)
        caption = " ".join(caption.split())
        if not caption:
            raise ValueError("the caption must not be empty")
        if len(caption) > MAX_CAPTION:
            raise ValueError(f"a caption has at most {MAX_CAPTION} characters, got {len(caption)}")
        from seed_fast.generate.drawing import draw

        with self._lock:
            return draw(*self.lm, [caption], num_codes=self.num_codes)[0].tolist()

    def _check_code(self, position: int, code: int) -> None:
        size = self.tok.config.codebook_size
        if not 0 <= code < size:
            raise ValueError(f"code {code} at position {position} must be 0 to {size - 1}")
