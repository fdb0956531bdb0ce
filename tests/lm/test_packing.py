"""Packing: every sample once, rows well filled, and for each sample the loss that it has alone."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seed_fast.lm.packing import attention_mask, best_fit, collate
from seed_fast.lm.sequences import IGNORED, TokenSequence
from seed_fast.testing import error_ratio

ROOM = 48


@given(st.lists(st.integers(1, ROOM), max_size=60))
@settings(deadline=None, max_examples=60)
def test_each_sample_is_in_one_row_that_holds_it(lengths):
    rows = best_fit(lengths, ROOM)
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[sample] for sample in row) <= ROOM for row in rows)


@given(st.lists(st.integers(1, ROOM), min_size=2, max_size=60))
@settings(deadline=None, max_examples=60)
def test_two_rows_together_never_fit_into_one(lengths):
    """Best fit opens a row only for what fits nowhere, so at most one row is half empty."""
    fills = sorted(sum(lengths[sample] for sample in row) for row in best_fit(lengths, ROOM))
    assert len(fills) < 2 or fills[0] + fills[1] > ROOM


def test_rows_of_captions_are_nearly_full():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(50, 90, (1000,), generator=generator).tolist()
    rows = best_fit(lengths, 1024)
    assert sum(lengths) / (len(rows) * 1024) > 0.97


def test_a_sample_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="at most 10 tokens, sample 1 has 11"):
        best_fit([3, 11], 10)
    with pytest.raises(ValueError, match="at most 10 tokens, got 11"):
        collate([[TokenSequence([5] * 11, [5] * 11)]], pad=0, length=10)


def test_a_batch_says_where_each_sample_is():
    first = TokenSequence([5, 6, 7], [IGNORED, 6, 7])
    second = TokenSequence([8, 9], [8, 9])
    batch = collate([[first, second], [second]], pad=1)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "ids": [[5, 6, 7, 8, 9, 1, 1, 1], [8, 9, 1, 1, 1, 1, 1, 1]],
        "labels": [[-100, 6, 7, -100, 9, -100, -100, -100], [-100, 9, -100, -100, -100, -100, -100, -100]],
        "positions": [[0, 1, 2, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]],
        "segments": [[1, 1, 1, 2, 2, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]],
    }
    assert all(value.dtype == torch.int64 for value in batch.values())


def test_the_mask_is_causal_within_a_sample_and_never_empty():
    mask = attention_mask(torch.tensor([[1, 1, 2, 0]]))
    assert mask.int().tolist() == [[[[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]]]


def _model(family):
    transformers = pytest.importorskip("transformers")
    from tests.lm.tiny import config

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(family), attn_implementation="sdpa").eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.requires_grad_(False)


def _losses(logits, labels):
    """Cross-entropy of each place of a row [T] but the first; 0 where nothing is learned."""
    return torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORED, reduction="none")


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_a_sample_has_the_same_loss_packed_padded_and_alone(family):
    model = _model(family)
    generator = torch.Generator().manual_seed(1)
    samples = []
    for length in (5, 17, 9, 12, 3, 21):
        ids = torch.randint(0, model.config.vocab_size, (length,), generator=generator).tolist()
        samples.append(TokenSequence(ids, [IGNORED, IGNORED, *ids[2:]]))

    def alone(model, sample):
        return _losses(model(torch.tensor([sample.ids])).logits[0], torch.tensor(sample.labels))

    rows = best_fit([len(sample) for sample in samples], 40)
    assert any(len(row) > 2 for row in rows)
    order = [number for row in rows for number in row]
    packed = _losses_of_samples(model, [[samples[number] for number in row] for row in rows], length=40)
    padded = _losses_of_samples(model, [[samples[number]] for number in order], length=None)
    peer, truth = (torch.cat([alone(each, samples[number]) for number in order]) for each in (model, double(model)))
    assert (truth > 0).sum() == sum(len(sample) - 2 for sample in samples)
    assert error_ratio(packed, peer, truth) <= 2
    assert error_ratio(padded, peer, truth) <= 2


def double(model):
    return copy.deepcopy(model).double()


def _losses_of_samples(model, rows, length):
    """The losses of every place of the samples but each one's first, one sample after another."""
    batch = collate(rows, pad=1, length=length)
    mask = attention_mask(batch["segments"])
    logits = model(batch["ids"], attention_mask=mask, position_ids=batch["positions"]).logits
    found = []
    for row in range(len(rows)):
        losses, segments = _losses(logits[row], batch["labels"][row]), batch["segments"][row]
        inside = (segments[1:] == segments[:-1]) & (segments[1:] > 0)
        found.append(losses[inside])
    return torch.cat(found)


def test_padded_rows_have_the_loss_of_plain_transformers():
    """With a two-dimensional mask and without positions, as anyone else would feed the padded batch."""
    model = _model("opt")
    samples = [TokenSequence([2, 5, 6, 7, 8], [IGNORED, 5, 6, 7, 8]), TokenSequence([2, 9, 3], [IGNORED, 9, 3])]
    batch = collate([[sample] for sample in samples], pad=1)
    given = {"attention_mask": (batch["segments"] > 0).long(), "labels": batch["labels"]}
    ours = _losses_of_samples(double(model), [[sample] for sample in samples], length=None).sum() / 6
    plain = double(model)(batch["ids"], **given).loss
    assert abs(ours - plain) <= torch.finfo(torch.float32).eps * plain, "no digit of float32 differs"
