"""A tokenizer of whole words, for language models that are trained from scratch on a small world such as `shapes`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from seed_fast.lm.sequences import IMAGE_TO_TEXT, TEXT_TO_IMAGE

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3, as in OPT, which begins and ends with </s>
_WORD = re.compile(r"\w+|[^\w\s]+")  # as the pre-tokenizer `Whitespace` splits


def word_tokenizer(texts: Iterable[str], max_length: int = 128) -> Any:
    """Make a `PreTrainedTokenizerFast` with a token for each word of the texts and of the two prompts.

    Case counts. A word that is in none of the texts becomes `<unk>`.

    Args:
        texts: texts whose words get ids, the most frequent ones first, ties in alphabetical order.
        max_length: positions of the model, in tokens; transformers warns about longer texts.

    Examples:
        >>> tokenizer = word_tokenizer(["a red star, on a white background"])
        >>> tokenizer.decode(tokenizer("a white star, red")["input_ids"])
        'a white star, red'
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    counts = Counter(word for text in texts for word in _WORD.findall(text))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    prompts = [word for prompt in (IMAGE_TO_TEXT, TEXT_TO_IMAGE) for word in prompt.split()]
    ids = {word: number for number, word in enumerate(dict.fromkeys([*SPECIAL, *prompts, *words]))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)  # joins words by spaces, but none before a comma
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=max_length,
    )
