"""Image tokens: `<img_00000>` and so on, one per code, then the markers `<img>` and `</img>`.

Source: official SEED-LLaMA tokenizer, whose 8192 codes follow LLaMA's 32000 tokens. Which marker comes first
isn't published; ids are therefore always looked up by the text of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seed_fast._text import shown

BEGIN, END = "<img>", "</img>"


def code_token(code: int) -> str:
    """Return the token of a code, as the official tokenizer writes it."""
    return f"<img_{code:05d}>"


@dataclass(frozen=True)
class Vocabulary:
    """The ids of image tokens and special tokens in a tokenizer.

    Args:
        first_code: id of `<img_00000>`; the id of code c is first_code + c.
        codebook_size: number of codes.
        begin_image: id of `<img>`.
        end_image: id of `</img>`.
        bos: id that begins a sequence.
        eos: id that ends a sequence.
        pad: id that fills the rest of a row.
    """

    first_code: int
    codebook_size: int
    begin_image: int
    end_image: int
    bos: int
    eos: int
    pad: int

    @property
    def new_ids(self) -> list[int]:
        """The ids of all image tokens, ascending."""
        codes = range(self.first_code, self.first_code + self.codebook_size)
        return sorted([*codes, self.begin_image, self.end_image])

    def check_codebook(self, size: int) -> None:
        """Check that a tokenizer's codebook has as many codes as there are tokens for.

        Raises:
            ValueError: it has another number of codes.
        """
        if size != self.codebook_size:
            raise ValueError(
                f"the language model must have the tokenizer's {size} codes as image tokens, got {self.codebook_size}"
            )

    def image(self, codes: Sequence[int]) -> list[int]:
        """Return the ids of an image: `<img>`, its codes, `</img>`.

        Raises:
            ValueError: a code is outside the codebook.
        """
        for code in codes:
            if not 0 <= code < self.codebook_size:
                raise ValueError(f"Vocabulary.image: a code must be in 0..{self.codebook_size - 1}, got {shown(code)}")
        return [self.begin_image, *(self.first_code + int(code) for code in codes), self.end_image]

    def codes_of(self, ids: Sequence[int]) -> list[list[int]]:
        """Return the codes of each well-formed image in `ids`: `<img>`, only codes and at least one, `</img>`."""
        images: list[list[int]] = []
        open_: list[int] | None = None
        for id_ in ids:
            if id_ == self.begin_image:
                open_ = []
            elif id_ == self.end_image:
                if open_:
                    images.append(open_)
                open_ = None
            elif open_ is not None:
                code = int(id_) - self.first_code
                open_ = [*open_, code] if 0 <= code < self.codebook_size else None
        return images

    @classmethod
    def of_tokenizer(cls, tokenizer: Any) -> Vocabulary:
        """Look the ids up in a tokenizer of transformers.

        Raises:
            ValueError: it has no image tokens, the codes' ids have a gap, or it has no end of sequence.
        """
        ids = tokenizer.get_vocab()
        for token in (code_token(0), BEGIN, END):
            if token not in ids:
                raise ValueError(
                    f"tokenizer: must have the image tokens ({code_token(0)}..., {BEGIN}, {END}), got one without "
                    f"{token}"
                )
        # Codes are numbered without a gap; their number is the size of the codebook.
        first, size = ids[code_token(0)], 0
        while code_token(size) in ids:
            if ids[code_token(size)] != first + size:
                raise ValueError(
                    f"tokenizer: ids of image tokens must follow each other, {code_token(size)} must be "
                    f"{first + size}, got {ids[code_token(size)]}"
                )
            size += 1
        beyond = next((token for token in ids if token.startswith("<img_") and not _is_known(token, size)), None)
        if beyond is not None:
            raise ValueError(
                f"tokenizer: image tokens must be {code_token(0)} to {code_token(size - 1)}, got {beyond} too"
            )
        # Special tokens, with the substitutes that official code takes where one is missing.
        eos, unk = tokenizer.eos_token_id, tokenizer.unk_token_id
        if eos is None:
            raise ValueError("tokenizer: must have an end-of-sequence token, got none")
        bos = eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        pads = (tokenizer.pad_token_id, unk, eos)  # LLaMA has no padding of its own: the official code takes unk
        return cls(first, size, ids[BEGIN], ids[END], bos, eos, next(pad for pad in pads if pad is not None))


def _is_known(token: str, size: int) -> bool:
    """True if this is the token of a code below `size`."""
    digits = token[len("<img_") : -1]
    return token.endswith(">") and digits.isdigit() and int(digits) < size and token == code_token(int(digits))


def add_image_tokens(tokenizer: Any, codebook_size: int = 8192) -> Vocabulary:
    """Add tokens for `codebook_size` codes and the two markers; new ids begin at len(tokenizer).

    That is not the number of rows of the embedding, which some models pad: OPT has 50272 rows for 50265 tokens. A
    tokenizer that has image tokens already stays as it is.

    Args:
        tokenizer: a tokenizer of transformers; it is changed.
        codebook_size: number of codes.

    Raises:
        ValueError: codebook_size is below 1, or the tokenizer has image tokens of another codebook.
    """
    if codebook_size < 1:
        raise ValueError(f"add_image_tokens: codebook_size must be at least 1, got {codebook_size}")
    known = tokenizer.get_vocab()
    tokens = [*map(code_token, range(codebook_size)), BEGIN, END]
    if not any(token in known for token in tokens):
        from transformers import AddedToken

        # Not special: `skip_special_tokens` drops bos and eos from an answer, and must not drop its image.
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])
    vocabulary = Vocabulary.of_tokenizer(tokenizer)
    if vocabulary.codebook_size != codebook_size:
        raise ValueError(
            f"add_image_tokens: codebook_size must be {vocabulary.codebook_size}, as the tokenizer has it already, "
            f"got {codebook_size}"
        )
    return vocabulary
