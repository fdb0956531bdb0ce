"""Stores of tokenised data sets: shards of (codes, text) with an index, made once and read at random by training."""

from __future__ import annotations

from seed_fast.data.tokens.identity import TokenizerIdentity
from seed_fast.data.tokens.store import StoreError, TokenStore, open_tokens
from seed_fast.data.tokens.writer import TokensWriter

__all__ = ["StoreError", "TokenStore", "TokenizerIdentity", "TokensWriter", "open_tokens"]
