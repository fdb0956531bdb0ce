"""The words that images are made of: `<img_00000>` and so on, one per code, then `<img>` and `</img>`.

Source: official SEED-LLaMA tokenizer, whose 8192 codes follow LLaMA's 32000 words. Which of the two markers comes first
isn't published; ids are therefore always looked up by the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seed_fast._text import shown

BEGIN, END = "<img>", "</img>"


def code_word(code: int) -> str:
    """The word of a code, as the official tokenizer writes it."""
    return f"<img_{code:05d}>"


@dataclass(frozen=True)
class Vocabulary:
    """Ids of a tokenizer that knows image words.

    Args:
        first_code: id of `<img_00000>`; that of code c is first_code + c.
        codebook_size: number of codes.
        begin_image: id of `<img>`.
        end_image: id of `</img>`.
        bos, eos, pad: ids that begin and end a sequence and fill the rest of a row.
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
        """Ids of all image words, ascending."""
        codes = range(self.first_code, self.first_code + self.codebook_size)
        return sorted([*codes, self.begin_image, self.end_image])

    def image(self, codes: Sequence[int]) -> list[int]:
        """Ids of `<img>`, the codes, `</img>`.

        Raises:
            ValueError: a code is outside the codebook.
        """
        for code in codes:
            if not 0 <= code < self.codebook_size:
                raise ValueError(f"Vocabulary.image: a code must be in 0..{self.codebook_size - 1}, got {shown(code)}")
        return [self.begin_image, *(self.first_code + int(code) for code in codes), self.end_image]

    def codes_of(self, ids: Sequence[int]) -> list[list[int]]:
        """Codes of each well-formed image in `ids`: `<img>`, one code or more and nothing else, `</img>`."""
        found: list[list[int]] = []
        open_: list[int] | None = None
        for id_ in ids:
            if id_ == self.begin_image:
                open_ = []
            elif id_ == self.end_image:
                if open_:
                    found.append(open_)
                open_ = None
            elif open_ is not None:
                code = int(id_) - self.first_code
                open_ = [*open_, code] if 0 <= code < self.codebook_size else None
        return found

    @classmethod
    def of_tokenizer(cls, tokenizer: Any) -> Vocabulary:
        """Look the words up in a transformers tokenizer.

        Raises:
            ValueError: it has no image words, the codes' ids have a gap, or it has no end of sequence.
        """
        ids = tokenizer.get_vocab()
        for word in (code_word(0), BEGIN, END):
            if word not in ids:
                raise ValueError(
                    f"tokenizer: must have the image words ({code_word(0)}..., {BEGIN}, {END}), got one without {word}"
                )
        first, size = ids[code_word(0)], 0
        while code_word(size) in ids:
            if ids[code_word(size)] != first + size:
                raise ValueError(
                    f"tokenizer: ids of image words must follow each other, {code_word(size)} must be "
                    f"{first + size}, got {ids[code_word(size)]}"
                )
            size += 1
        beyond = next((word for word in ids if word.startswith("<img_") and not _is_known(word, size)), None)
        if beyond is not None:
            raise ValueError(
                f"tokenizer: image words must be {code_word(0)} to {code_word(size - 1)}, got {beyond} too"
            )
        eos, unk = tokenizer.eos_token_id, tokenizer.unk_token_id
        if eos is None:
            raise ValueError("tokenizer: must have an end-of-sequence word, got none")
        bos = eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        pads = (tokenizer.pad_token_id, unk, eos)  # LLaMA has no padding of its own: the official code takes unk
        return cls(first, size, ids[BEGIN], ids[END], bos, eos, next(pad for pad in pads if pad is not None))


def _is_known(word: str, size: int) -> bool:
    digits = word[len("<img_") : -1]
    return word.endswith(">") and digits.isdigit() and int(digits) < size and word == code_word(int(digits))


def add_image_words(tokenizer: Any, codebook_size: int = 8192) -> Vocabulary:
    """Add the words of `codebook_size` codes and the two markers; new ids begin at len(tokenizer).

    That is not the number of rows of the embedding, which some models pad: OPT has 50272 rows for 50265 words. A
    tokenizer that has the words already stays as it is.

    Args:
        tokenizer: of transformers; changed.
        codebook_size: number of codes.

    Raises:
        ValueError: codebook_size is below 1, or the tokenizer has image words of another codebook.
    """
    if codebook_size < 1:
        raise ValueError(f"add_image_words: codebook_size must be at least 1, got {codebook_size}")
    known = tokenizer.get_vocab()
    words = [*map(code_word, range(codebook_size)), BEGIN, END]
    if not any(word in known for word in words):
        from transformers import AddedToken

        # Not special: `skip_special_tokens` drops bos and eos from an answer, and must not drop its image.
        tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in words])
    vocabulary = Vocabulary.of_tokenizer(tokenizer)
    if vocabulary.codebook_size != codebook_size:
        raise ValueError(
            f"add_image_words: codebook_size must be {vocabulary.codebook_size}, as the tokenizer has it already, "
            f"got {codebook_size}"
        )
    return vocabulary
