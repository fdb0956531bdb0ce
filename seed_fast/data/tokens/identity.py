"""`TokenizerIdentity` names the tokenizer that made codes; stores and folders of language models keep it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TokenizerIdentity:
    """The tokenizer that made the codes of a store, by its name and hashes.

    Args:
        name: name that the user gave it.
        weights: its `seed_fast.model.weight_hashes.fingerprint`, a hash of samples of its weights; None where unknown.
        codebook_size: number of entries; every code is below it.
        codes_per_image: number N of codes of an image.
        encoder: `seed_fast.model.weight_hashes.encoder_hash`, a hash of all that decides codes; None if unknown, as in
            files of versions before it.
    """

    name: str
    weights: str | None = None
    codebook_size: int = 8192
    codes_per_image: int = 32
    encoder: str | None = None

    @classmethod
    def of_tokenizer(cls, tok: Any, name: str) -> TokenizerIdentity:
        """Return the identity of a `SeedTokenizer`; reads all of its weights once."""
        from seed_fast.model.weight_hashes import encoder_hash, fingerprint

        config = tok.config
        return cls(name, fingerprint(tok), config.codebook_size, config.num_codes, encoder_hash(tok))

    def is_same(self, other: TokenizerIdentity) -> bool:
        """Return True if codes of both mean the same: by hashes where both have one, otherwise by name."""
        same = self.compare(other)
        return self.name == other.name if same is None else same

    def compare(self, other: TokenizerIdentity) -> bool | None:
        """Return True if codes of both mean the same, False if not, and None if only the names could tell."""
        if (self.codebook_size, self.codes_per_image) != (other.codebook_size, other.codes_per_image):
            return False
        if self.encoder is not None and other.encoder is not None:
            return self.encoder == other.encoder
        if self.weights is not None and other.weights is not None:
            return self.weights == other.weights
        return None

    def __str__(self) -> str:
        known = self.encoder or self.weights
        weights = "weights unknown" if known is None else f"weights {known}"
        return f"{self.name} ({weights}, {self.codes_per_image} of {self.codebook_size} codes)"
