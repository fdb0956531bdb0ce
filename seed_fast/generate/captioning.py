"""Codes to text: the language model continues "A photo of"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from seed_fast.generate.batches import batched
from seed_fast.generate.decoding import DecodingStrategy, complete
from seed_fast.generate.images import EncodedImage
from seed_fast.lm.model import LanguageModel
from seed_fast.lm.sequences import caption_prompt
from seed_fast.lm.vocabulary import Vocabulary

MAX_TOKENS = 64


class CaptionedImage(NamedTuple):
    """The path of an image and its caption."""

    path: str
    text: str


def caption(
    model: Any,
    tokenizer: Any,
    vocabulary: Vocabulary,
    codes: Sequence[Sequence[int]],
    *,
    max_tokens: int = MAX_TOKENS,
    **options: Any,
) -> list[str]:
    """Caption images.

    Args:
        model: the language model, as `seed_fast.lm.model.load` returns it.
        tokenizer: its tokenizer.
        vocabulary: the ids of its image tokens.
        codes: codes of B images, each N integers; a tensor [B, N] will do.
        max_tokens: the most tokens of a caption.
        options: `strategy`, `batch_size` and `advance` of `seed_fast.generate.decoding.complete`.

    Returns:
        B captions, without the prompt's "A photo of".

    Raises:
        ValueError: a code is outside the codebook, or an image leaves none of the model's positions for text.

    Examples:
        >>> from seed_fast import SeedTokenizer
        >>> from seed_fast.data import shapes
        >>> from seed_fast.lm.model import load
        >>> tok = SeedTokenizer.from_pretrained("seed-tiny")
        >>> codes = tok.encode([shapes.render(shapes.scene(0, 0, "test"), 64)])
        >>> caption(*load("examples/seed-opt-tiny"), codes)[0].startswith("a medium blue diamond")
        True
    """
    prompts = [caption_prompt(vocabulary, tokenizer, [int(code) for code in image]) for image in codes]
    completions = complete(model, vocabulary, prompts, max_tokens=max_tokens, images="forbid", **options)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in completions]


def caption_stream(
    lm: LanguageModel,
    images: Iterable[EncodedImage],
    *,
    strategy: DecodingStrategy,
    batch_size: int,
    max_tokens: int = MAX_TOKENS,
) -> Iterator[list[CaptionedImage]]:
    """Caption images as they come, a batch at a time, in their order.

    Args:
        lm: the language model.
        images: any number of images; read only as far as batches are asked for.
        strategy: how tokens are chosen; each batch has a seed of its own, counted up from the strategy's.
        batch_size: images per batch.
        max_tokens: the most tokens of a caption.

    Raises:
        ValueError: as `caption`.
    """
    for number, batch in enumerate(batched(images, batch_size)):
        texts = caption(
            *lm,
            [image.codes for image in batch],
            max_tokens=max_tokens,
            strategy=replace(strategy, seed=strategy.seed + number),
            batch_size=batch_size,
        )
        yield [CaptionedImage(image.path, text) for image, text in zip(batch, texts, strict=True)]
