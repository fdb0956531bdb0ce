"""Text to codes: "Generate an image" and a caption, continued by the codes of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seed_fast.generate.decoding import answers
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
    """Draw images: their codes, which `SeedTokenizer.decode` turns into what an image generator reads.

    Args:
        model: the language model, as `seed_fast.lm.model.load` returns it.
        tokenizer: its tokenizer.
        vocabulary: which of its tokens are image tokens.
        texts: B captions.
        num_codes: codes of an image, N.
        options: `decoding`, `batch_size` and `advance` of `seed_fast.generate.decoding.answers`.

    Returns:
        Codes [B, N] int64 on the CPU. The constraint makes every answer a whole image.

    Raises:
        ValueError: a caption leaves the model no room for an image.
    """
    made = attempts(model, tokenizer, vocabulary, texts, num_codes=num_codes, images="force", **options)
    return torch.tensor([vocabulary.codes_of(ids)[0] for ids in made], dtype=torch.int64).reshape(-1, num_codes)


def attempts(
    model: Any, tokenizer: Any, vocabulary: Vocabulary, texts: Sequence[str], *, num_codes: int = 32, **options: Any
) -> list[list[int]]:
    """What the model writes when asked to draw, as many tokens as an image has; `images=None` leaves it free."""
    prompts = [drawing_prompt(vocabulary, tokenizer, text) for text in texts]
    return answers(model, vocabulary, prompts, max_tokens=num_codes + 2, num_codes=num_codes, **options)
