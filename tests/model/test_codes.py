"""Codes of any integer type are decoded as what they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seed_fast import SeedTokenizer
from seed_fast.model.codes import as_codes

KINDS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", ">u2", ">i4")


@pytest.fixture(scope="module")
def tok() -> SeedTokenizer:
    return SeedTokenizer.from_pretrained("seed-tiny")


@pytest.mark.parametrize("kind", KINDS)
def test_stored_codes_are_decoded_whatever_their_type(kind: str, tok: SeedTokenizer) -> None:
    codes = np.arange(64).reshape(2, 32)
    stored = codes.astype(kind)
    forms = [stored, list(stored)]
    forms += [torch.from_numpy(stored)] if stored.dtype.isnative else []
    for form in forms:
        assert torch.equal(tok.decode(form), tok.decode(codes.tolist())), type(form)
        assert torch.equal(tok.reconstruct(form), tok.reconstruct(torch.from_numpy(codes)))


@pytest.mark.parametrize(
    ("codes", "error", "message"),
    [
        (np.zeros((1, 32)), TypeError, "decode: codes must be integers, got float64"),
        (np.zeros((1, 32), bool), TypeError, "decode: codes must be integers, got bool"),
        ([["1"] * 32], TypeError, "decode: codes must be integers, got <U1"),
        ([[1] * 32, [1] * 31], ValueError, "decode: codes must be .B, N., got rows of different lengths"),
        (
            np.full((1, 32), 2**64 - 1, np.uint64),
            ValueError,
            "decode: a code must be below 2..63, got 18446744073709551615",
        ),
        (np.full((1, 32), 2048, np.uint16), ValueError, "decode: codes must be in 0..2047, got 2048..2048"),
        (np.zeros((1, 16), np.uint16), ValueError, r"decode: codes must be \[B, 32\], got \[1, 16\]"),
        (np.zeros(32, np.uint16), ValueError, r"decode: codes must be \[B, 32\], got \[32\]"),
    ],
)
def test_what_are_no_codes_of_the_tokenizer_is_named(
    codes: object, error: type, message: str, tok: SeedTokenizer
) -> None:
    with pytest.raises(error, match=message):
        tok.decode(codes)


def test_no_codes_are_no_error() -> None:
    assert as_codes([], "x").shape == (0,)
    assert as_codes(torch.zeros(0, 32, dtype=torch.int32), "x").dtype == torch.int64
