"""Edits of codes and embeddings."""

from __future__ import annotations

import pytest
import torch

from seed_fast import SeedTokenizer
from seed_fast.generate.editing import decode_prefix, interpolate, join_codes, set_codes


def test_codes_are_joined_and_changed() -> None:
    assert join_codes([1, 2, 3], [7, 8, 9], 1) == [1, 8, 9]
    assert set_codes([1, 2, 3], {2: 9}) == [1, 2, 9]
    with pytest.raises(ValueError, match=r"length must be in 0\.\.3, got 4"):
        join_codes([1, 2, 3], [7, 8, 9], 4)


def test_a_prefix_ignores_later_codes_and_a_whole_one_is_decode() -> None:
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    codes = torch.arange(64).reshape(2, 32)
    changed = codes.clone()
    changed[:, 8:] += 100
    assert torch.equal(decode_prefix(tok, codes, 8), decode_prefix(tok, changed, 8))
    assert not torch.equal(decode_prefix(tok, codes, 9), decode_prefix(tok, changed, 9))
    assert torch.equal(decode_prefix(tok, codes, 32), tok.decode(codes))


def test_image_embeddings_keep_their_length_on_the_way() -> None:
    between = interpolate(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]), 3)
    assert torch.allclose(between.norm(dim=1), torch.tensor(2.0))
