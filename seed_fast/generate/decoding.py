"""From prompts to answers: batches padded on the left, a key-value cache, greedy search, beams or top-p sampling.

The work is done by `generate` of transformers. Here a batch gets the attention mask from which the model derives its
positions, so that a prompt has the same answer alone and in a batch, and the constraint on images.
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
class Decoding:
    """How the next token is chosen. The default is greedy: the most likely one.

    Raises:
        ValueError: a value is out of range, or two don't go together.
    """

    beams: int = 1  # sequences that are followed at once; the most likely is the answer
    top_p: float | None = None  # sample among the most likely tokens that together have this probability
    temperature: float = 1.0  # of sampling
    seed: int = 0  # of sampling

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ValueError(f"Decoding: beams must be at least 1, got {self.beams}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"Decoding: top_p must be above 0 and at most 1, got {self.top_p}")
        if not self.temperature > 0:
            raise ValueError(f"Decoding: temperature must be above 0, got {self.temperature}")
        if self.top_p is None and self.temperature != 1:
            raise ValueError(f"Decoding: temperature {self.temperature} needs top_p: it changes sampling alone")
        if self.top_p is not None and self.beams > 1:
            raise ValueError(f"Decoding: beams must be 1 with top_p, got {self.beams}: beams follow, they don't sample")

    def config(self, vocabulary: Vocabulary, new_tokens: int) -> GenerationConfig:
        """For `generate`; every choice is named, so that a model's own generation_config.json changes nothing."""
        sampling = {}
        if self.top_p is not None:
            sampling = {"do_sample": True, "top_p": self.top_p, "top_k": 0, "temperature": self.temperature}
        return GenerationConfig(
            num_beams=self.beams,
            max_new_tokens=new_tokens,
            use_cache=True,
            bos_token_id=vocabulary.bos,
            eos_token_id=vocabulary.eos,
            pad_token_id=vocabulary.pad,
            **{"do_sample": False, **sampling},
        )


def pad_left(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Prompts as ids [B, T] int64, padded on the left, and the attention mask [B, T]: 0 for padding.

    The mask is made of lengths and not by comparing with `pad`: that may be a word too, as LLaMA's unknown word is.
    """
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.int64)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


@torch.inference_mode()
def answers(
    model: Any,
    vocabulary: Vocabulary,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    decoding: Decoding | None = None,
    images: Images | None = "free",
    num_codes: int = 32,
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda prompts: None,
) -> list[list[int]]:
    """What the model writes after each prompt, without the end of sequence.

    Prompts of like length share a batch; the answers come in the order of the prompts.

    Args:
        model: a causal language model of transformers, or of peft around one.
        vocabulary: of its tokenizer.
        prompts: token ids.
        max_tokens: most tokens of an answer; fewer where the model's positions end.
        decoding: default: greedy.
        images: see `ImageSpans`; None: no constraint at all.
        num_codes: codes of an image.
        batch_size: prompts at a time.
        advance: called with the number of prompts after each batch.

    Raises:
        ValueError: a prompt is empty, or so long that the model has no room for an answer.
    """
    decoding = decoding or Decoding()
    room = getattr(model.config, "max_position_embeddings", None)
    needed = num_codes + 2 if images == "force" else 1
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"generate: prompt {number} must have at least one token, got none")
        if room is not None and len(prompt) + needed > room:
            raise ValueError(
                f"generate: prompt {number} must leave room for {needed} of the model's {room} positions, "
                f"got {len(prompt)} tokens"
            )
    found: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(enabled=decoding.top_p is not None):
            if decoding.top_p is not None:
                torch.manual_seed(decoding.seed)
            for begin in range(0, len(order), batch_size):
                rows = order[begin : begin + batch_size]
                ids, mask = pad_left([prompts[number] for number in rows], vocabulary.pad)
                length = ids.shape[1]
                new = max_tokens if room is None else min(max_tokens, room - length)
                spans = None
                if images is not None:
                    spans = ImageSpans(
                        vocabulary, num_codes, images=images, prompt_length=length, max_length=length + new
                    )
                made = model.generate(
                    input_ids=ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    generation_config=decoding.config(vocabulary, new),
                    logits_processor=LogitsProcessorList([spans] if spans else []),
                )
                for number, row in zip(rows, made[:, length:].tolist(), strict=True):
                    found[number] = row[: row.index(vocabulary.eos)] if vocabulary.eos in row else row
                advance(len(rows))
    finally:
        model.train(training)
    return found
