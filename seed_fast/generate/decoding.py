"""Continue prompts with a language model: greedy search, beam search or top-p sampling, in batches.

`generate` of transformers does the work. This module pads prompts on the left and passes the attention mask from which
the model derives positions, so that a prompt is continued in the same way alone and in a batch; and it adds the logits
processor that keeps images whole.

Shapes: B prompts, T tokens of the longest prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from seed_fast.lm.constraint import Images, ImageSpans
from seed_fast.lm.vocabulary import Vocabulary


@dataclass(frozen=True)
class DecodingStrategy:
    """How the next token is chosen. The default is greedy search: always the most likely token.

    Args:
        beams: sequences that beam search follows at once; the most likely one is the result. 1: greedy search.
        top_p: sample among the most likely tokens that together have this probability; None: no sampling.
        temperature: softmax temperature for sampling.
        seed: seed of the random numbers for sampling.

    Raises:
        ValueError: a value is out of range, or two values exclude each other.

    Examples:
        >>> DecodingStrategy(top_p=0.5, temperature=0.8)
        DecodingStrategy(beams=1, top_p=0.5, temperature=0.8, seed=0)
    """

    beams: int = 1
    top_p: float | None = None
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ValueError(f"decoding: beams must be at least 1, got {self.beams}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"decoding: top_p must be above 0 and at most 1, got {self.top_p}")
        if not self.temperature > 0:
            raise ValueError(f"decoding: temperature must be above 0, got {self.temperature}")
        if self.top_p is None and self.temperature != 1:
            raise ValueError(f"decoding: temperature {self.temperature} needs top_p: it changes sampling alone")
        if self.top_p is not None and self.beams > 1:
            raise ValueError(f"decoding: beams must be 1 with top_p, got {self.beams}: beam search doesn't sample")

    def config(self, vocabulary: Vocabulary, new_tokens: int) -> GenerationConfig:
        """Return the options for `generate` of transformers.

        Every choice is named, so that a model's own generation_config.json changes nothing.
        """
        sampling: dict[str, Any] = {"do_sample": False}
        if self.top_p is not None:
            sampling = {"do_sample": True, "top_p": self.top_p, "top_k": 0, "temperature": self.temperature}
        return GenerationConfig(
            num_beams=self.beams,
            max_new_tokens=new_tokens,
            use_cache=True,
            bos_token_id=vocabulary.bos,
            eos_token_id=vocabulary.eos,
            pad_token_id=vocabulary.pad,
            **sampling,
        )


def pad_left(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Put prompts into one tensor, padded on the left.

    The mask is made from the lengths and not by comparing with `pad`, which may also be an ordinary token of a prompt,
    such as LLaMA's unknown token.

    Args:
        prompts: B lists of token ids, at least one.
        pad: token id for padding.

    Returns:
        Token ids [B, T] int64, and the attention mask [B, T] int64, which is 0 where there is padding.

    Examples:
        >>> ids, mask = pad_left([[5, 6], [7]], pad=0)
        >>> ids.tolist(), mask.tolist()
        ([[5, 6], [0, 7]], [[1, 1], [0, 1]])
    """
    longest = max(map(len, prompts))
    ids_BT = torch.full((len(prompts), longest), pad, dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        ids_BT[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.int64)
        mask_BT[row, longest - len(prompt) :] = 1
    return ids_BT, mask_BT


@torch.inference_mode()
def complete(
    model: Any,
    vocabulary: Vocabulary,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    strategy: DecodingStrategy | None = None,
    images: Images | None = "free",
    num_codes: int = 32,
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda prompts: None,
) -> list[list[int]]:
    """Return the tokens that the model writes after each prompt, without the end-of-sequence token.

    Prompts of similar length share a batch; the results are in the order of the prompts.

    Args:
        model: a causal language model of transformers, or of peft around one.
        vocabulary: the ids of its tokenizer's special tokens and image tokens.
        prompts: token ids.
        max_tokens: the most tokens of a completion; fewer where the model's positions end.
        strategy: how tokens are chosen; default: greedy search.
        images: where images may begin, see `ImageSpans`; None: the model may write any token anywhere.
        num_codes: codes of an image.
        batch_size: prompts per batch.
        advance: called after each batch with the number of its prompts.

    Raises:
        ValueError: a prompt is empty, or leaves too few of the model's positions for a completion.
    """
    strategy = strategy or DecodingStrategy()

    # Refuse prompts that can't be completed before any of them is.
    positions = getattr(model.config, "max_position_embeddings", None)
    needed = num_codes + 2 if images == "force" else 1
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"generate: prompt {number} must have at least one token, got none")
        if positions is not None and len(prompt) + needed > positions:
            raise ValueError(
                f"generate: prompt {number} must leave room for {needed} of the model's {positions} positions, "
                f"got {len(prompt)} tokens"
            )

    # Sort by length, so that batches have little padding.
    completions: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(enabled=strategy.top_p is not None):
            if strategy.top_p is not None:
                torch.manual_seed(strategy.seed)
            for begin in range(0, len(order), batch_size):
                rows = order[begin : begin + batch_size]
                ids_BT, mask_BT = pad_left([prompts[number] for number in rows], vocabulary.pad)
                length = ids_BT.shape[1]
                new = max_tokens if positions is None else min(max_tokens, positions - length)
                spans = None
                if images is not None:
                    spans = ImageSpans(
                        vocabulary, num_codes, images=images, prompt_length=length, max_length=length + new
                    )
                output = model.generate(
                    input_ids=ids_BT.to(model.device),
                    attention_mask=mask_BT.to(model.device),
                    generation_config=strategy.config(vocabulary, new),
                    logits_processor=LogitsProcessorList([spans] if spans else []),
                )
                # Rows that ended early are filled up after their end-of-sequence token.
                for number, ids in zip(rows, output[:, length:].tolist(), strict=True):
                    completions[number] = ids[: ids.index(vocabulary.eos)] if vocabulary.eos in ids else ids
                advance(len(rows))
    finally:
        model.train(training)
    return completions
