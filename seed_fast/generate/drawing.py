"""Text to codes: the language model continues "Generate an image" and a caption with the codes of an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from seed_fast.generate.batches import batched
from seed_fast.generate.decoding import DecodingStrategy, complete
from seed_fast.lm.model import LanguageModel
from seed_fast.lm.sequences import drawing_prompt
from seed_fast.lm.vocabulary import Vocabulary


def draw(
    model: Any,
    tokenizer: Any,
    vocabulary: Vocabulary,
    texts: Sequence[str],
    *,
    num_codes: int = 32,
    **options: Any,
) -> Tensor:
    """Draw images: write the codes that `SeedTokenizer.decode` turns into what an image generator reads.

    Args:
        model: the language model, as `seed_fast.lm.model.load` returns it.
        tokenizer: its tokenizer.
        vocabulary: the ids of its image tokens.
        texts: B captions.
        num_codes: codes of an image, N.
        options: `strategy`, `batch_size` and `advance` of `seed_fast.generate.decoding.complete`.

    Returns:
        Codes [B, N] int64 on the CPU. Every row is a whole image, because the model may write nothing else.

    Raises:
        ValueError: a caption leaves too few of the model's positions for an image.

    Examples:
        >>> from seed_fast.lm.model import load
        >>> draw(*load("examples/seed-opt-tiny"), ["a small red star on a white background"]).shape
        torch.Size([1, 32])
    """
    completions = complete_drawing_prompts(
        model, tokenizer, vocabulary, texts, num_codes=num_codes, images="force", **options
    )
    codes = [vocabulary.codes_of(ids)[0] for ids in completions]
    return torch.tensor(codes, dtype=torch.int64).reshape(-1, num_codes)


def complete_drawing_prompts(
    model: Any, tokenizer: Any, vocabulary: Vocabulary, texts: Sequence[str], *, num_codes: int = 32, **options: Any
) -> list[list[int]]:
    """Return the tokens that the model writes when it is asked to draw: at most as many as an image has.

    With `images=None` the model may write anything; with "force" it is always one whole image.
    """
    prompts = [drawing_prompt(vocabulary, tokenizer, text) for text in texts]
    return complete(model, vocabulary, prompts, max_tokens=num_codes + 2, num_codes=num_codes, **options)


def draw_stream(
    lm: LanguageModel,
    texts: Iterable[str],
    *,
    strategy: DecodingStrategy,
    batch_size: int,
    num_codes: int = 32,
) -> Iterator[tuple[list[str], Tensor]]:
    """Draw images for captions as they come, a batch at a time, in their order.

    Args:
        lm: the language model.
        texts: any number of captions; read only as far as batches are asked for.
        strategy: how tokens are chosen; each batch has a seed of its own, counted up from the strategy's.
        batch_size: captions per batch.
        num_codes: codes of an image, N.

    Returns:
        An iterator of batches: B captions, and their codes [B, N] int64.

    Raises:
        ValueError: as `draw`.
    """
    for number, batch in enumerate(batched(texts, batch_size)):
        each = replace(strategy, seed=strategy.seed + number)
        yield batch, draw(*lm, batch, num_codes=num_codes, strategy=each, batch_size=batch_size)
