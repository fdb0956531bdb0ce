"""`ImageSpans`: a logits processor of transformers that lets a language model write complete images only.

A row is *inside* an image after `<img>` until `</img>`. Inside, codes alone may follow until there are `num_codes`,
and then `</img>` alone. Outside, neither codes nor `</img>` may follow. What state a row is in is read from its ids at
every step and never remembered, so beams may be reordered, rows may be padded on the left, and a prompt may end inside
an image.

Shapes: B rows (batch times beams), T tokens so far, V vocabulary.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import LogitsProcessor

from seed_fast.lm.vocabulary import Vocabulary

Images = Literal["free", "forbid", "force"]


class ImageSpans(LogitsProcessor):
    """Allow exactly `num_codes` codes between `<img>` and `</img>`, and codes nowhere else.

    Args:
        vocabulary: ids of the model's tokenizer.
        num_codes: number of codes of an image.
        images: "free": the model decides where an image begins. "forbid": none begins. "force": the answer begins with
            one, and what follows it is free. An image that the prompt has begun is finished in every case.
        prompt_length: tokens of a prompt with its padding, where the answer begins; "force" needs it.
        max_length: most tokens of prompt and answer together. With it no image begins that would not be whole by then.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> vocabulary = Vocabulary(10, 4, begin_image=14, end_image=15, bos=2, eos=2, pad=1)
        >>> only_codes = ImageSpans(vocabulary, num_codes=2)(torch.tensor([[2, 5, 14]]), torch.zeros(1, 16))
        >>> only_codes.isfinite().nonzero()[:, 1].tolist()
        [10, 11, 12, 13]
    """

    # It reads each row from its beginning, and continuous batching shows a processor the newest tokens alone.
    supports_continuous_batching = False

    def __init__(
        self,
        vocabulary: Vocabulary,
        num_codes: int = 32,
        *,
        images: Images = "free",
        prompt_length: int | None = None,
        max_length: int | None = None,
    ) -> None:
        if num_codes < 1:
            raise ValueError(f"ImageSpans: num_codes must be at least 1, got {num_codes}")
        if images not in get_args(Images):
            raise ValueError(f"ImageSpans: images must be one of {', '.join(get_args(Images))}, got {images!r}")
        if images == "force":
            if prompt_length is None:
                raise ValueError("ImageSpans: images='force' needs prompt_length, to know where the answer begins")
            least = prompt_length + num_codes + 2
            if max_length is not None and max_length < least:
                raise ValueError(
                    f"ImageSpans: max_length must be at least {least} to hold the prompt and an image of {num_codes} "
                    f"codes, got {max_length}"
                )
        self.vocabulary = vocabulary
        self.num_codes = num_codes
        self.images = images
        self.prompt_length = prompt_length
        self.max_length = max_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores [B, V] with -inf where a token may not follow `input_ids` [B, T] int64.

        Raises:
            ValueError: the scores have no room for the image tokens, or a row already has an image that can't be right.
        """
        tokens = self.vocabulary
        size = max(tokens.new_ids) + 1
        if scores.shape[-1] < size:
            raise ValueError(f"ImageSpans: scores must be [B, {size}] or wider, got {list(scores.shape)}")
        written_B = self._codes_written(input_ids)
        length = input_ids.shape[1]
        codes = torch.zeros(scores.shape[-1], dtype=torch.bool, device=scores.device)
        codes[tokens.first_code : tokens.first_code + tokens.codebook_size] = True

        # Inside an image only codes may follow until it is full, then only `</img>`; outside neither may.
        outside_B = written_B < 0
        full_B = written_B == self.num_codes
        # [B, V]: codes inside an image, all other tokens outside
        allowed = torch.where(outside_B[:, None], ~codes, codes & ~full_B[:, None])
        allowed[:, tokens.end_image] = full_B
        # Where an image may begin: not if forbidden or without room for all of it; at once if forced.
        no_room = self.max_length is not None and length + self.num_codes + 2 > self.max_length
        if self.images == "forbid" or no_room:
            allowed[:, tokens.begin_image] = False
        if self.images == "force" and length == self.prompt_length:
            begin = torch.zeros_like(codes)
            begin[tokens.begin_image] = True
            allowed = torch.where(outside_B[:, None], begin, allowed)
        return scores.masked_fill(~allowed, -torch.inf)

    def _codes_written(self, input_ids: Tensor) -> Tensor:
        """Count the codes of the open image of each row, [B]; -1 where none is open."""
        tokens = self.vocabulary
        length = input_ids.shape[1]
        # An image is open if the last `<img>` comes after the last `</img>`.
        places = torch.arange(1, length + 1, device=input_ids.device)
        begun_B = (places * (input_ids == tokens.begin_image)).amax(
            dim=1
        )  # place of the last, from 1; 0: there is none
        ended_B = (places * (input_ids == tokens.end_image)).amax(dim=1)
        written_B = torch.where(begun_B > ended_B, length - begun_B, -1)
        # Everything in an open image must be a code, or the prompt was wrong.
        is_code = (input_ids >= tokens.first_code) & (input_ids < tokens.first_code + tokens.codebook_size)
        codes_B = (is_code & (places > begun_B[:, None])).sum(dim=1)
        wrong_B = (written_B >= 0) & ((codes_B != written_B) | (written_B > self.num_codes))
        if wrong_B.any():
            row = int(wrong_B.int().argmax())
            raise ValueError(
                f"ImageSpans: the image that row {row} has begun must be at most {self.num_codes} codes and nothing "
                f"else so far, got {int(written_B[row])} tokens of which {int(codes_B[row])} are codes"
            )
        return written_B
