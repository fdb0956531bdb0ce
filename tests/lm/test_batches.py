"""Batches of sequences: each sample once an epoch on any number of ranks, exact places, tasks by ratio."""

from __future__ import annotations

import json
import logging
from collections import Counter
from itertools import islice

import pytest
import torch

from seed_fast.lm.batches import SequenceBatches, parse_tasks
from seed_fast.lm.sequences import IGNORED
from seed_fast.lm.vocabulary import add_image_tokens
from tests.lm.tiny import CODEBOOK, tokenizer

pytest.importorskip("transformers")

LENGTH = 40
WORDS = ["red", "green", "blue", "big", "small", "circle", "square"]


class Source:
    """Pictures with captions of one to nine words; each is known by its codes."""

    codebook_size, window = CODEBOOK, None

    def __init__(self, count: int) -> None:
        self.groups = [count]

    def __len__(self) -> int:
        return self.groups[0]

    def __getitem__(self, number: int) -> dict:
        texts = tuple(" ".join(WORDS[(number + each) % 7] for each in range(1 + number % 9)) for number in (number, 8))
        codes = [number // CODEBOOK % CODEBOOK, number % CODEBOOK]
        return {"kind": "caption", "key": f"k{number}", "codes": codes, "text": texts[0], "texts": texts}


@pytest.fixture(scope="module")
def words():
    return tokenizer("opt")


@pytest.fixture(scope="module")
def vocabulary(words):
    return add_image_tokens(words, CODEBOOK)


@pytest.fixture
def make(words, vocabulary):
    def made(count=200, **options):
        options = {"batch_size": 2, "length": LENGTH, "window": 32, "seed": 3} | options
        return SequenceBatches(Source(count), vocabulary, words, **options)

    return made


def numbers(vocabulary, batches):
    """The samples in some batches, in their order, read back from their codes."""
    found = []
    for batch in batches:
        for row in batch["ids"].tolist():
            found += [high * CODEBOOK + low for high, low in vocabulary.codes_of(row)]
    return found


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_has_each_sample_once_and_the_next_another_order(make, vocabulary, packing):
    batches = make(packing=packing, drop_last=False)
    first, second = numbers(vocabulary, batches), numbers(vocabulary, batches)
    assert sorted(first) == sorted(second) == list(range(200))
    assert first != second
    assert numbers(vocabulary, make(packing=packing, drop_last=False)) == first


def test_packed_rows_have_one_length_and_padded_ones_that_of_the_longest(make):
    for batch in make(packing=True):
        assert batch["ids"].shape == (2, LENGTH)
    for batch in make(packing=False):
        longest = int((batch["segments"] > 0).sum(1).max())
        assert batch["segments"].max() == 1
        assert batch["ids"].shape == (2, -(-longest // 8) * 8)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_see_together_what_one_process_sees(make, packing, drop_last):
    options = {"packing": packing, "drop_last": drop_last}
    whole = list(make(batch_size=6, **options))
    ranks = [list(make(batch_size=2, rank=rank, world=3, **options)) for rank in range(3)]
    for step, batch in enumerate(whole):
        rows = [row for rank in ranks if step < len(rank) for row in _rows(rank[step])]
        assert rows == _rows(batch)


def _rows(batch):
    """Each row without its filling."""
    return [ids[segments > 0].tolist() for ids, segments in zip(batch["ids"], batch["segments"], strict=True)]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("done", [0, 1, 7, 20])
def test_a_run_goes_on_at_any_place_on_another_number_of_ranks(make, packing, done):
    """Whole steps of six rows, by one process before and by three after; across the end of an epoch."""
    before, straight = make(batch_size=6, packing=packing), make(batch_size=6, packing=packing)
    steps = [_rows(batch) for batch in islice(_forever(straight), done + 9)]
    list(islice(_forever(before), done))
    state = json.loads(json.dumps(before.state_dict()))
    ranks = [make(batch_size=2, packing=packing, rank=rank, world=3) for rank in range(3)]
    for rank in ranks:
        rank.load_state_dict(state)
    after = zip(*(islice(_forever(rank), 9) for rank in ranks), strict=True)
    assert [[row for batch in step for row in _rows(batch)] for step in after] == steps[done:]
    assert len({json.dumps(rank.state_dict()) for rank in ranks}) == 1


def _forever(batches):
    while True:
        yield from batches


def test_a_place_of_other_data_or_settings_is_refused(make):
    state = make().state_dict()
    for options, name in (
        ({"seed": 4}, "seed 3, now it is 4"),
        ({"count": 201}, "samples 200, now it is 201"),
        ({"packing": False}, "packing True"),
        ({"length": 64}, "length 40"),
        ({"tasks": {"drawing": 1}}, "tasks"),
    ):
        with pytest.raises(ValueError, match=name):
            make(**options).load_state_dict(state)
    with pytest.raises(ValueError, match="expected a state with epoch"):
        make().load_state_dict({"epoch": 0})


def test_tasks_are_mixed_by_their_ratios_and_drawn_anew_each_epoch(make, vocabulary):
    batches = make(count=576, packing=False, tasks={"drawing": 1, "caption": 3}, drop_last=False)
    used = [{}, {}]
    for epoch in used:
        for batch in batches:
            for row, labels in zip(batch["ids"], batch["labels"], strict=True):
                high, low = vocabulary.codes_of(row.tolist())[0]
                is_drawing = bool((labels == vocabulary.begin_image).any())
                epoch[high * CODEBOOK + low] = "drawing" if is_drawing else "caption"
    share = Counter(used[0].values())["drawing"] / 576
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 576) ** 0.5
    again = sum(used[0][number] == used[1][number] for number in used[0]) / 576
    assert 0.5 < again < 0.75  # independent draws agree in 1/16 + 9/16


def test_of_several_captions_one_is_drawn(make, words):
    said = set()
    batches = make(count=20, packing=False)
    for batch in islice(_forever(batches), 100):
        for row in batch["ids"].tolist():
            text = words.decode(row, skip_special_tokens=True)
            if "<img_00000><img_00005>" in text.replace(" ", ""):
                said.add(text.partition("A photo of ")[2])
    assert said == {Source(200)[5]["texts"][0], Source(200)[5]["texts"][1]}


def test_without_shuffling_every_epoch_is_the_same(make):
    batches = make(shuffle=False, tasks={"caption": 1, "drawing": 1})
    assert [_rows(batch) for batch in batches] == [_rows(batch) for batch in batches]


def test_every_kind_of_a_store_is_used(tmp_path, words, vocabulary):
    from seed_fast.data.tokens import TokenizerIdentity, TokensWriter, open_tokens

    image = [1, 2]
    samples = [
        {"kind": "caption", "codes": image, "text": "red"},
        {"kind": "question", "images": [image], "questions": ["big"], "answers": ["small !"]},
        {"kind": "video", "images": [image, image], "text": "circle"},
        {"kind": "edit", "images": [image, image], "instruction": "green", "response": None},
        {"kind": "interleaved", "image_ids": [None, image], "texts": ["blue", None]},
        {"kind": "text", "text": "square"},
    ]
    writer = TokensWriter(tmp_path, TokenizerIdentity("x", None, CODEBOOK, 2))
    writer.open({}, resume=False)
    assert not writer.append(samples, next_place=6)
    writer.finish()
    batches = SequenceBatches(
        open_tokens(tmp_path), vocabulary, words, batch_size=1, length=16, packing=False, shuffle=False
    )
    said = [words.decode(batch["ids"][batch["segments"] > 0]) for batch in batches]
    for text, word in zip(said, ["red", "small", "circle", "green", "blue", "square"], strict=True):
        assert word in text
    assert batches.skipped == 0


def test_too_long_samples_are_named_and_counted_or_refused_but_never_cut(make, vocabulary, caplog):
    room = 14  # of captions up to six words
    with caplog.at_level(logging.WARNING, "seed_fast.data"):
        batches = make(length=room, drop_last=False, packing=True)
        found = numbers(vocabulary, batches)
    assert batches.skipped == 200 - len(found) > 0
    assert "more than the 14 of a row" in caplog.text
    with pytest.raises(ValueError, match=r"sample \d+ \(k\d+\): 1\d tokens, more than the 14 of a row"):
        list(make(length=room, too_long="error"))


def test_every_row_ends_its_samples(make, vocabulary):
    for batch in make(tasks={"caption": 1, "drawing": 1, "pretraining": 1}):
        for ids, labels, segments in zip(batch["ids"], batch["labels"], batch["segments"], strict=True):
            for segment in range(1, int(segments.max()) + 1):
                own = segments == segment
                assert ids[own][[0, -1]].tolist() == [vocabulary.bos, vocabulary.eos]
                assert labels[own][[0, -1]].tolist() == [IGNORED, vocabulary.eos]
        assert torch.all(batch["ids"][batch["segments"] == 0] == vocabulary.pad)


def test_the_estimate_of_a_padded_epoch_is_exact_and_its_length_too(make):
    batches = make(count=32, packing=False)
    rows = [row for batch in make(count=32, packing=False) for row in _rows(batch)]
    assert batches.estimate()[:2] == (32, sum(map(len, rows)))
    assert len(batches) == 16
    assert make().estimate().filled > 0.85


def test_what_cannot_be_meant_is_refused(make, words, vocabulary):
    for options, message in (
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"rank": 2, "world": 2}, "got rank 2 of 2"),
        ({"too_long": "cut"}, "'skip' or 'error', got 'cut'"),
        ({"count": 0}, "must hold a sample"),
        ({"tasks": {"draw": 1}}, "got 'draw'"),
        ({"tasks": {"drawing": 0}}, "a ratio above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)
    with pytest.raises(ValueError, match="NAME:RATIO"):
        parse_tasks("caption:many")
    assert parse_tasks("drawing:2, caption") == {"caption": 1.0, "drawing": 2.0}
    other = Source(3)
    other.codebook_size = 512
    with pytest.raises(ValueError, match=f"codebook of {CODEBOOK}, for which the vocabulary has tokens, got 512"):
        SequenceBatches(other, vocabulary, words, batch_size=1, length=40)
