"""Turn captions into token ids: BERT's word pieces from a local folder, or the whole words of our own vocabulary."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from seed_fast._disguise import refuse_disguised
from seed_fast._files import write_beside

MAX_TOKENS = 32  # tokens per caption, the official number; longer captions are cut
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
PAD, UNKNOWN, CLS, SEP = range(4)
DEC = "[DEC]"  # BLIP-2 adds it to BERT's vocabulary for captioning; here it is only one more embedding row
VOCABULARY = "vocabulary.txt"


class CaptionTokenizer(Protocol):
    """Interface of a caption tokenizer, whose result `TextTower` reads."""

    size: int
    max_tokens: int

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return input_ids [B, T] int64 and attention_mask [B, T] int64 of B captions, padded on the right."""

    def save(self, folder: Path) -> None:
        """Write the files from which `open_captions` restores this tokenizer."""


class WordTokenizer:
    """A tokenizer of lower-cased words and punctuation marks; a word outside the vocabulary becomes [UNK].

    Examples:
        >>> tokenizer = WordTokenizer.of_captions(["A red circle.", "a blue square"])
        >>> ids, mask = tokenizer(["a red square"])
        >>> [tokenizer.words[i] for i in ids[0]]
        ['[CLS]', 'a', 'red', 'square', '[SEP]']
    """

    def __init__(self, words: Sequence[str], max_tokens: int = MAX_TOKENS) -> None:
        if tuple(words[: len(SPECIAL)]) != SPECIAL:
            raise ValueError(f"WordTokenizer: words must begin with {', '.join(SPECIAL)}, got {list(words[:4])}")
        if len(set(words)) != len(words):
            twice = next(word for word, count in Counter(words).items() if count > 1)
            raise ValueError(f"WordTokenizer: words must differ, got {twice!r} twice")
        if max_tokens < 3:
            raise ValueError(f"WordTokenizer: max_tokens must be at least 3, got {max_tokens}")
        self.words, self.size, self.max_tokens = tuple(words), len(words), max_tokens
        self._ids = {word: number for number, word in enumerate(words)}

    @classmethod
    def of_captions(cls, captions: Iterable[str], limit: int = 30_000, max_tokens: int = MAX_TOKENS) -> WordTokenizer:
        """Make a tokenizer from the `limit` most frequent words of captions, ties in alphabetical order."""
        counts = Counter(word for caption in captions for word in split_words(caption))
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        return cls([*SPECIAL, *ordered[: limit - len(SPECIAL)]], max_tokens)

    @classmethod
    def load(cls, folder: Path, max_tokens: int = MAX_TOKENS) -> WordTokenizer:
        """Load the tokenizer whose words `save` wrote."""
        return cls((folder / VOCABULARY).read_text(encoding="utf-8").split("\n")[:-1], max_tokens)

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return input_ids and attention_mask; see `CaptionTokenizer`."""
        room = self.max_tokens - 2
        rows = [
            [CLS, *(self._ids.get(word, UNKNOWN) for word in split_words(caption)[:room]), SEP] for caption in captions
        ]
        longest = max((len(row) for row in rows), default=2)
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows], dtype=torch.int64).reshape(-1, longest)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], dtype=torch.int64)
        return ids, mask.reshape(-1, longest)

    def save(self, folder: Path) -> None:
        """Write the vocabulary to vocabulary.txt, one word per line."""
        write_beside(folder / VOCABULARY, "".join(f"{word}\n" for word in self.words).encode())


class BertCaptions:
    """The tokenizer of a local BERT folder (bert-base-uncased), with [DEC] added to its vocabulary.

    Raises:
        ImportError: transformers isn't installed.
        OSError: the folder has no tokenizer.
    """

    def __init__(self, folder: str | Path, max_tokens: int = MAX_TOKENS) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise ImportError("a BERT tokenizer needs transformers: pip install 'seed_fast[train]'") from error
        refuse_disguised(Path(folder), ("*.json", "vocab.txt"))
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._tokenizer.add_special_tokens({"bos_token": DEC})
        self.max_tokens = max_tokens
        self.size = len(self._tokenizer)

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return input_ids and attention_mask; see `CaptionTokenizer`."""
        rows = self._tokenizer(
            list(captions),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        return rows["input_ids"], rows["attention_mask"]

    def save(self, folder: Path) -> None:
        """Write the files of BERT's tokenizer."""
        self._tokenizer.save_pretrained(folder)


def split_words(caption: str) -> list[str]:
    """Return the lower-cased words and punctuation marks of a caption."""
    return re.findall(r"\w+|[^\w\s]", caption.lower())


def open_captions(folder: str | Path, max_tokens: int = MAX_TOKENS) -> CaptionTokenizer:
    """Open the tokenizer that `save` wrote into a folder, our own or BERT's; captions are cut to `max_tokens`.

    Raises:
        FileNotFoundError: the folder holds neither.
    """
    folder = Path(folder)
    if (folder / VOCABULARY).is_file():
        return WordTokenizer.load(folder, max_tokens)
    if (folder / "vocab.txt").is_file() or (folder / "tokenizer.json").is_file():
        return BertCaptions(folder, max_tokens)
    raise FileNotFoundError(f"{folder}: must hold {VOCABULARY}, or a BERT tokenizer (vocab.txt); got neither")
