"""Token stores: what goes in comes out, kill and resume at any moment, damage and mixtures are refused."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seed_fast.data.journal import OutputError
from seed_fast.data.shards import WHOLE, Split
from seed_fast.data.tokens import StoreError, TokenizerIdentity, TokensWriter, open_tokens

TINY = TokenizerIdentity("tiny", "abc", codebook_size=100, codes_per_image=4)
RUN = {"inputs": "these"}

texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
images = st.lists(st.integers(0, 99), min_size=4, max_size=4)
several = st.lists(images, min_size=1, max_size=3)
turns = st.lists(st.tuples(texts, texts), min_size=1, max_size=3)
slots = st.lists(st.one_of(texts, images), min_size=1, max_size=6)


def of_turns(shown, said):
    return {"images": shown, "questions": [each[0] for each in said], "answers": [each[1] for each in said]}


def of_slots(parts):
    is_text = [isinstance(part, str) for part in parts]
    return {
        "image_ids": [None if text else part for part, text in zip(parts, is_text, strict=True)],
        "texts": [part if text else None for part, text in zip(parts, is_text, strict=True)],
    }


fields = st.one_of(
    st.builds(lambda codes, said: {"kind": "caption", "codes": codes, "text": said[0], "texts": tuple(said)},
              images, st.lists(texts, min_size=1, max_size=3)),
    st.builds(lambda shown, said: {"kind": "question", **of_turns(shown, said)},
              st.lists(images, max_size=3), turns),
    st.builds(lambda shown, text: {"kind": "video", "images": shown, "text": text}, several, texts),
    st.builds(lambda shown, text, answer: {"kind": "edit", "images": shown, "instruction": text, "response": answer},
              st.lists(images, min_size=2, max_size=2), texts, st.none() | texts),
    st.builds(lambda parts: {"kind": "interleaved", **of_slots(parts)}, slots),
    st.builds(lambda text: {"kind": "text", "text": text}, texts),
)  # fmt: skip
samples = st.lists(st.builds(lambda sample, key: {**sample, "key": key}, fields, st.text()), max_size=12)


def plain(value):
    """Arrays as lists, so that samples can be compared."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def write(folder, blocks, identity=TINY, split=WHOLE, **options):
    writer = TokensWriter(Path(folder), identity, split, **options)
    writer.open(RUN, resume=True)
    for number, block in enumerate(blocks):
        writer.append(block, next_place=number + 1)
    writer.finish()
    return writer


def captions(count, begin=0):
    return [
        {"kind": "caption", "key": f"k{n}", "codes": [n % 100, 1, 2, n % 7], "text": f"number {n}"}
        for n in range(begin, begin + count)
    ]


@given(samples)
@settings(deadline=None, max_examples=60)
def test_samples_of_every_kind_come_back(tmp_path_factory, given_samples):
    folder = tmp_path_factory.mktemp("store")
    write(folder, [given_samples[:5], given_samples[5:]], shard_samples=4)
    store = open_tokens(folder)
    assert [plain(sample) for sample in store] == [plain(sample) for sample in given_samples]
    assert sum(store.kinds.values()) == len(store) == len(given_samples)


def test_samples_are_read_at_random_by_anyone_who_reads_safetensors(tmp_path):
    write(tmp_path, [captions(10), captions(10, 10), captions(3, 20)], shard_samples=10)
    store = open_tokens(tmp_path)
    assert store.groups == [10, 10, 3]
    for number in (22, 0, 9, 10, 19, 20):
        assert store[number]["text"] == f"number {number}"
        assert store[number]["codes"].tolist() == [number, 1, 2, number % 7]
    assert store[3]["codes"].dtype == np.uint16
    with pytest.raises(IndexError, match=r"0\.\.22, got 23"):
        store[23]
    with pytest.raises(IndexError):
        store[-1]
    from safetensors.numpy import load_file

    codes = load_file(tmp_path / "tokens.00001.safetensors")["codes"]
    assert codes.shape == (10, 4)
    assert codes[:, 0].tolist() == list(range(10, 20))


def test_a_store_can_be_sent_to_a_worker(tmp_path):
    write(tmp_path, [captions(5)])
    store = open_tokens(tmp_path)
    assert store[4]["key"] == "k4"
    assert pickle.loads(pickle.dumps(store))[4]["key"] == "k4"


def test_reading_holds_no_more_than_a_sample(tmp_path):
    write(tmp_path, [captions(2000, begin) for begin in range(0, 10_000, 2000)], shard_samples=2000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 400_000
    tracemalloc.start()
    try:
        store = open_tokens(tmp_path)
        assert sum(len(sample["text"]) for sample in store) > 100_000
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_codes_of_two_tokenizers_are_not_mixed(tmp_path):
    write(tmp_path / "a", [captions(2)])
    write(tmp_path / "b", [captions(3)], TokenizerIdentity("renamed", "abc", 100, 4))
    write(tmp_path / "c", [captions(2)], TokenizerIdentity("tiny", "other", 100, 4))
    write(tmp_path / "d", [captions(2)], TokenizerIdentity("tiny", None, 200, 4))
    write(tmp_path / "e", [captions(2)], TokenizerIdentity("tiny", None, 100, 4))
    assert len(open_tokens([tmp_path / "a", tmp_path / "b", tmp_path / "e"])) == 7
    for other in "cd":
        with pytest.raises(StoreError, match=f"{other}/index.json: codes of two tokenizers can't be mixed: .*abc.*got"):
            open_tokens([tmp_path / "a", tmp_path / other])


def test_many_writers_make_one_store_which_opens_when_all_are_done(tmp_path):
    for part in (2, 0):
        write(tmp_path, [captions(2, 10 * part)], split=Split(part, 3))
    with pytest.raises(StoreError, match=r"index\.00001-of-00003\.json is missing"):
        open_tokens(tmp_path)
    write(tmp_path, [captions(2, 10)], split=Split(1, 3))
    assert [sample["key"] for sample in open_tokens(tmp_path)] == ["k0", "k1", "k10", "k11", "k20", "k21"]


def test_bad_samples_are_named_and_counted(tmp_path):
    writer = TokensWriter(tmp_path, TINY)
    writer.open(RUN, resume=False)
    good = captions(1)[0]
    problems = writer.append(
        [
            good | {"key": "range", "codes": [0, 0, 0, 100]},
            good | {"key": "few", "codes": [1, 2, 3]},
            good | {"key": "float", "codes": [1, 2, 3, 4.0]},
            good | {"key": "blank", "text": " "},
            good | {"key": "surrogate", "text": "\ud800"},
            good | {"key": "kind", "kind": "sound"},
            {"kind": "caption", "key": "field", "codes": [1, 2, 3, 4]},
            {"kind": "interleaved", "key": "slot", "image_ids": [None], "texts": [None]},
            {"kind": "question", "key": "turn", "images": [], "questions": ["a"], "answers": []},
            good,
        ],
        next_place=10,
        skipped=2,
    )
    writer.finish()
    told = ["0..99, got 100", "4 codes, got 3", "list of int", "blank", "UTF-8", "got 'sound'", "must have 'text'"]
    told += ["slot 0 must have an image or a text, got neither", "as many, got 1 and 0"]
    for problem, expected in zip(problems, told, strict=True):
        assert expected in problem
    assert problems[0].startswith("range: ")
    store = open_tokens(tmp_path)
    assert (len(store), store.skipped) == (1, 11)


@pytest.mark.parametrize("damage", ["cut", "missing", "header", "text", "index", "version"])
def test_damage_is_named(tmp_path, damage):
    write(tmp_path, [captions(10)])
    shard, index = tmp_path / "tokens.00000.safetensors", tmp_path / "index.json"
    if damage == "cut":
        os.truncate(shard, shard.stat().st_size - 1)
    elif damage == "missing":
        shard.unlink()
    elif damage == "header":
        shard.write_bytes(b"\xff" * 100)
    elif damage == "text":
        shard.write_bytes(shard.read_bytes().replace(b"number 0", b"number \xff"))
    elif damage == "index":
        index.write_text("{}")
    else:
        index.write_text(index.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(StoreError, match=str(index if damage in ("index", "version") else shard)):
        open_tokens(tmp_path)[0]


def test_an_unfinished_store_does_not_open_and_says_how_to_go_on(tmp_path):
    writer = TokensWriter(tmp_path, TINY)
    writer.open(RUN, resume=False)
    writer.append(captions(1), next_place=1)
    writer.close()
    with pytest.raises(StoreError, match="an unfinished one, whose run must be resumed"):
        open_tokens(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="no token store is here"):
        open_tokens(tmp_path / "empty")


def test_another_run_may_not_go_on(tmp_path):
    writer = TokensWriter(tmp_path, TINY)
    writer.open(RUN, resume=False)
    with pytest.raises(OutputError, match="another process"):
        TokensWriter(tmp_path, TINY).open(RUN, resume=True)
    writer.append(captions(1), next_place=1)
    writer.close()
    with pytest.raises(OutputError, match="inputs was these, is others"):
        TokensWriter(tmp_path, TINY).open({"inputs": "others"}, resume=True)
    write(tmp_path, [captions(1, 1)])
    with pytest.raises(OutputError, match="made by another run"):
        TokensWriter(tmp_path, TINY).open({"inputs": "others"}, resume=True)
    (tmp_path / "index.json").unlink()  # as if a kill had come while it was being overwritten
    with pytest.raises(OutputError, match="made by another run"):
        TokensWriter(tmp_path, TINY).open({"inputs": "others"}, resume=True)


def test_a_torn_block_is_as_if_it_had_not_been_written(tmp_path):
    writer = TokensWriter(tmp_path, TINY, shard_samples=100)
    writer.open(RUN, resume=False)
    writer.append(captions(3), next_place=3)
    writer.append(captions(3, 3), next_place=6, skipped=1)
    writer.close()
    journal = tmp_path / "tokens.00000.partial"
    whole = journal.read_bytes()
    for size in (len(whole) - 1, len(whole) - 30, whole.index(b"\n") + 2):
        journal.write_bytes(whole[:size])
        writer = TokensWriter(tmp_path, TINY)
        writer.open(RUN, resume=True)
        assert (writer.next_place, writer.samples, writer.skipped) == (3, 3, 0)
        writer.close()


_KILLED = """
import sys
from pathlib import Path
from seed_fast.data.tokens import TokenizerIdentity, TokensWriter
writer = TokensWriter(Path(sys.argv[1]), TokenizerIdentity("tiny", "abc", 100, 4), shard_samples=40)
writer.open({"inputs": "these"}, resume=True)
for place in range(writer.next_place, 1200, 3):
    numbers = range(place, place + 3)
    samples = [dict(kind="caption", key=f"k{n}", codes=[n % 100] * 4, text=f"number {n}") for n in numbers]
    writer.append(samples, next_place=place + 3, skipped=1)
writer.finish()
"""


def test_killed_writers_lose_and_repeat_nothing(tmp_path):
    folder, kills = tmp_path / "store", 0
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", _KILLED, str(folder)])
        while process.poll() is None and kills < 4:
            if folder.is_dir() and len(list(folder.glob("*.safetensors"))) > 6 * kills:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
        if process.wait() == 0:
            break
    store = open_tokens(folder)
    assert [sample["key"] for sample in store] == [f"k{n}" for n in range(1200)]
    assert store.skipped == 400
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["index.json", *(shard.name for shard in store.paths)]
    )
    assert json.loads((folder / "index.json").read_text())["samples"] == 1200
    assert kills


@pytest.mark.parametrize("how", [{"resume": True}, {"resume": False}, {"resume": False, "overwrite": False}], ids=str)
def test_a_store_that_is_being_written_is_refused_and_untouched(tmp_path, how):
    block = [{"kind": "text", "key": "a", "text": "one"}]
    first = TokensWriter(tmp_path, TINY)
    first.open(RUN, resume=False)
    first.append(block, next_place=1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OutputError, match="another process is writing it"):
        TokensWriter(tmp_path, TINY).open(RUN, **how)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    first.append(block, next_place=2)
    first.finish()
    assert len(open_tokens(tmp_path)) == 2
    assert sorted(os.listdir(tmp_path)) == ["index.json", "tokens.00000.safetensors"]
    with pytest.raises(OutputError, match="another run has begun or finished it meanwhile"):
        TokensWriter(tmp_path, TINY).open(RUN, resume=False, overwrite=False)
    assert len(open_tokens(tmp_path)) == 2


def test_equal_runs_make_stores_of_equal_bytes(tmp_path):
    block = [{"kind": "text", "key": str(number), "text": "one " * number} for number in range(1, 9)]
    stores = []
    for name in "abcdefgh":
        write(tmp_path / name, [block, block])
        stores.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert all(store == stores[0] for store in stores)
