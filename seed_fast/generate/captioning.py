"""Codes to text: "A photo of", continued by the language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seed_fast.generate.decoding import answers
from seed_fast.lm.sequences import caption_prompt
from seed_fast.lm.vocabulary import Vocabulary

MAX_TOKENS = 64


def caption(
    model: Any,
    tokenizer: Any,
    vocabulary: Vocabulary,
    codes: Sequence[Sequence[int]],
    *,
    max_tokens: int = MAX_TOKENS,
    **options: Any,
) -> list[str]:
    """Describe images.

    Args:
        model: the language model, as `seed_fast.lm.model.load` returns it.
        tokenizer: its tokenizer.
        vocabulary: which of its tokens are image tokens.
        codes: of B images, each N integers (a tensor [B, N] will do).
        max_tokens: most tokens of a caption.
        options: `decoding`, `batch_size` and `advance` of `seed_fast.generate.decoding.answers`.

    Returns:
        B captions, without the prompt's "A photo of".

    Raises:
        ValueError: a code is outside the codebook, or an image leaves the model no room for words.
    """
    prompts = [caption_prompt(vocabulary, tokenizer, [int(code) for code in each]) for each in codes]
    made = answers(model, vocabulary, prompts, max_tokens=max_tokens, images="forbid", **options)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in made]
