"""Importing codes: official pickles can run nothing, every form is understood, what is bad is named and skipped."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import tarfile
import time
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from seed_fast import SeedConfig
from seed_fast.cli import app
from seed_fast.data.tokens import open_tokens
from seed_fast.data.tokens.pickles import PickleRefused, plain_unpickle

CODES = list(range(32))
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)


@pytest.fixture
def run():
    def invoke(*arguments):
        found = CliRunner().invoke(app, ["tokens", *map(str, arguments)])
        assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
        return found

    return invoke


def tar(path, members):
    """A shard with members given as values to pickle or as bytes."""
    with tarfile.open(path, "w") as archive:
        for name, value in members.items():
            content = value if isinstance(value, bytes) else pickle.dumps(value, protocol=4)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


class Evil:
    """Makes a file when it is unpickled as usual."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@given(plain_values, st.integers(0, 5))
@settings(deadline=None, max_examples=80)
def test_plain_values_are_unpickled(value, protocol):
    assert plain_unpickle(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_in_a_pickle_runs(tmp_path, protocol):
    content = pickle.dumps({"image_ids": CODES, "text": Evil(tmp_path / "ran")}, protocol=protocol)
    with pytest.raises(PickleRefused, match=r"must name no class or function, got (STACK_)?GLOBAL (posix|nt).mkdir"):
        plain_unpickle(content)
    assert not (tmp_path / "ran").exists()
    pickle.loads(content)  # as usual it does run
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [{1}, b"x", bytearray(b"x"), 1j, np.int64(3), OrderedDict(a=1), range(3), len, Evil])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_other_values_are_refused(value, protocol):
    with pytest.raises(PickleRefused, match="a pickle"):
        plain_unpickle(pickle.dumps([value], protocol=protocol))


@given(st.binary(max_size=60) | st.builds(lambda v, n: pickle.dumps(v)[:n], plain_values, st.integers(0, 40)))
@settings(deadline=None, max_examples=200)
def test_damaged_pickles_raise_nothing_else(content):
    with contextlib.suppress(PickleRefused):
        plain_unpickle(content)


def test_a_small_pickle_cannot_ask_for_much_memory():
    """As usual, this one of eight bytes takes 32 GiB."""
    with pytest.raises(PickleRefused, match="numbers a value 2147483647"):
        plain_unpickle(b"K\x01r\xff\xff\xff\x7f.")


def test_official_samples_of_every_form(tmp_path, run):
    members = {
        "a.pkl": {"image_ids": CODES, "text": "a dog", "metadata": '{"width": 3}'},
        "b.pkl": {"image_ids": CODES, "question": "what?", "answer": "a dog"},
        "c.pkl": {"image_ids": CODES, "question": ["what?", "where?"], "answer": ("a dog", "here")},
        "d.pkl": {"source_image_ids": CODES, "target_image_ids": CODES[::-1], "instruction": "turn"},
        "e.pkl": {"source_image_ids": CODES, "target_image_ids": CODES, "instruction": "no", "response": "sure"},
        "f.pkl": {"image_ids": [None, CODES, CODES], "texts": ["see", None, None], "metadata": {"n": 1}},
        "g.pkl": {"image_ids": CODES * 4, "answer": "a dog runs"},
        "h.pkl": {"image_ids": CODES * 4, "question": "who?", "answer": "a dog"},
        "i.pkl": {"text": "no image"},
        "readme.txt": b"not a sample",
    }
    tar(tmp_path / "0000000.tar", members)
    tar(tmp_path / "0000001.tar", {"z.pkl": {"image_ids": CODES, "text": "second shard"}})
    found = run("import", tmp_path / "000000{0..1}.tar", "-o", tmp_path / "out", "--tokenizer", "seed-2", "--json")
    assert found.exit_code == 0, found.output
    store = open_tokens(tmp_path / "out")
    kinds = ["caption", "question", "question", "edit", "edit", "interleaved", "video", "question", "text", "caption"]
    assert [sample["kind"] for sample in store] == kinds
    assert store[0]["key"] == f"{tmp_path}/0000000.tar/a.pkl"
    assert store[0]["codes"].tolist() == CODES
    assert (store[2]["questions"], store[2]["answers"]) == (["what?", "where?"], ["a dog", "here"])
    assert store[3]["images"].tolist() == [CODES, CODES[::-1]]
    assert (store[3]["response"], store[4]["response"]) == (None, "sure")
    assert store[5]["texts"] == ["see", None, None]
    assert store[6]["images"].shape == store[7]["images"].shape == (4, 32)
    assert (store[6]["text"], store[9]["text"]) == ("a dog runs", "second shard")
    shown = run("info", "--verify", "--json", tmp_path / "out")
    about = json.loads(shown.stdout)
    assert (about["samples"], about["images"], about["tokenizer"]) == (10, 18, "seed-2")


def test_bad_members_and_torn_shards_are_named_counted_and_skipped(tmp_path, run):
    good = {"image_ids": CODES, "text": "a dog"}
    bad = {
        "evil.pkl": {**good, "metadata": Evil(tmp_path / "ran")},
        "cut.pkl": pickle.dumps(good)[:40],
        "range.pkl": {**good, "image_ids": [8192] * 32},
        "few.pkl": {**good, "image_ids": CODES[1:]},
        "array.pkl": {**good, "image_ids": np.array(CODES)},
        "none.pkl": {**good, "text": None},
        "list.pkl": [good],
        "other.pkl": {"codes": CODES},
    }
    first = tar(tmp_path / "a.tar", {"0.pkl": good, **bad, "1.pkl": good})
    torn = tar(tmp_path / "b.tar", {"2.pkl": good, "3.pkl": good})
    os.truncate(torn, 1024 + 512 + 20)
    found = run("import", first, torn, tmp_path / "c.tar", "-o", tmp_path / "out", "--tokenizer", "x", "--json")
    assert found.exit_code == 3
    assert not (tmp_path / "ran").exists()
    for name in bad:
        assert f"skipped: {first}/{name}: " in found.stderr
    assert f"bad input: {torn}: the shard is cut off inside 3.pkl" in found.stderr
    assert f"bad input: {tmp_path}/c.tar: no such shard" in found.stderr
    assert "got STACK_GLOBAL posix.mkdir" in found.stderr
    summary = json.loads(found.stdout)
    assert (summary["written"], summary["skipped"], summary["bad_inputs"]) == (3, len(bad), 2)
    assert [sample["key"][-5:] for sample in open_tokens(tmp_path / "out")] == ["0.pkl", "1.pkl", "2.pkl"]


def test_shares_of_an_import_make_one_store(tmp_path, run):
    members = {f"{n}.pkl": {"image_ids": CODES, "text": f"number {n}"} for n in range(10)}
    path = tar(tmp_path / "a.tar", members)
    for part in range(3):
        found = run("import", path, "-o", tmp_path / "out", "--tokenizer", "x", "--shard", f"{part}/3")
        assert found.exit_code == 0, found.output
    said = sorted(sample["text"] for sample in open_tokens(tmp_path / "out"))
    assert said == sorted(value["text"] for value in members.values())


def test_output_of_tokenize_is_joined_with_captions_by_path(tmp_path, run):
    photos = tmp_path / "photos"
    photos.mkdir()
    lines = [{"image": f"{n}.jpg", "caption": [f"number {n}", f"again {n}"]} for n in range(4)]
    (photos / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    codes = tmp_path / "codes.jsonl"
    made = [{"path": f"{photos}/{n}.jpg", "codes": [n] * 32} for n in (3, 1, 9)]
    made[0]["path"] = os.path.relpath(made[0]["path"])
    codes.write_text("".join(json.dumps(line) + "\n" for line in made) + '{"path": "torn')
    refused = run("import", codes, "-o", tmp_path / "out", "--tokenizer", "x")
    assert refused.exit_code == 2
    assert "need --captions" in refused.stderr
    found = run("import", codes, "--captions", photos, "-o", tmp_path / "out", "--tokenizer", "x")
    assert found.exit_code == 3
    assert f"skipped: {photos}/9.jpg: no caption belongs to this picture" in found.stderr
    assert f"skipped: {codes}:4: expected" in found.stderr
    store = open_tokens(tmp_path / "out")
    assert [sample["texts"] for sample in store] == [("number 3", "again 3"), ("number 1", "again 1")]
    assert [sample["codes"][0] for sample in store] == [3, 1]


def test_codes_of_shards_find_their_captions(tmp_path, run):
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    tar(tmp_path / "a.tar", {"x/1.png": picture.getvalue(), "x/1.txt": b"one", "x/2.png": picture.getvalue(),
                             "x/2.json": b'{"caption": "two"}'})  # fmt: skip
    codes = tmp_path / "codes"
    codes.mkdir()
    paths = np.array([f"{tmp_path}/a.tar/x/2.png", f"{tmp_path}/a.tar/x/1.png"])
    np.savez(codes / "codes.00000.npz", paths=paths, codes=np.array([[2] * 32, [1] * 32], dtype=np.uint16))
    found = run("import", codes, "--captions", tmp_path / "a.tar", "-o", tmp_path / "out", "--tokenizer", "x")
    assert found.exit_code == 0, found.output
    assert [sample["text"] for sample in open_tokens(tmp_path / "out")] == ["two", "one"]


def test_imported_codes_join_those_that_the_same_tokenizer_made(tmp_path, run):
    path = tar(tmp_path / "a.tar", {"0.pkl": {"image_ids": CODES, "text": "a dog"}})
    sizes = ("--codebook-size", SeedConfig.preset("seed-tiny").codebook_size)
    for name in ("mine", "other"):
        made = run("import", path, "-o", tmp_path / name, "--tokenizer", name, *sizes)
        assert made.exit_code == 0, made.output
    built = run("build", "shapes:2", "-o", tmp_path / "built", "--tokenizer", "mine", "--workers", 0)
    assert built.exit_code == 0, built.output
    both = run("info", tmp_path / "built", tmp_path / "mine", "--json")
    assert json.loads(both.stdout)["samples"] == 3
    mixed = run("info", tmp_path / "built", tmp_path / "other")
    assert mixed.exit_code == 1
    assert "codes of two tokenizers can't be mixed: expected mine (weights" in mixed.stderr


def test_nothing_is_made_of_nothing(tmp_path, run):
    tar(tmp_path / "empty.tar", {"a.txt": b""})
    common = ("-o", tmp_path / "out", "--tokenizer", "x")
    assert run("import", tmp_path / "empty.tar", *common).exit_code == 2
    assert run("import", tmp_path / "missing.tar", *common).exit_code == 1
    assert not (tmp_path / "out").exists()


SHARED = {
    "60 levels of shared pairs as a key": b"\x80\x04}K\x01" + b"2\x86" * 60 + b"K\x01s.",
    "the same, remembered": b"\x80\x04}K\x01"
    + b"\x94h\x00\x86"
    + b"".join(b"q%ch%c\x86" % (n, n) for n in range(1, 60))
    + b"K\x01s.",
    "a tuple as a key": pickle.dumps({("a", "b"): 1}),
    "27 levels as the codes": b"\x80\x04}\x8c\x09image_ids" + b"K\x01" + b"2\x86" * 27 + b"s\x8c\x04text\x8c\x01xs.",
    "60 levels in a list of codes": b"\x80\x04}\x8c\x09image_idsK\x01" + b"2\x86" * 60 + b"\x85\x8c\x04text\x8c\x01xu.",
    "60 levels as the text": b"\x80\x04}(\x8c\x09image_ids]\x8c\x04textK\x01" + b"2\x86" * 60 + b"u.",
    "60 levels as the whole": b"\x80\x04K\x01" + b"2\x86" * 60 + b".",
    "60 levels of lists": b"\x80\x04}(\x8c\x09image_ids" + b"]" + b"2\x86" * 60 + b"\x8c\x04text\x8c\x01xu.",
    "a list in itself": b"\x80\x04}(\x8c\x09image_ids]\x94h\x00a\x8c\x04text\x8c\x01xu.",
    "a number of 8 million bits": pickle.dumps({"image_ids": [1 << 8_000_000] * 32, "text": "x"}),
    "a large number as a key": pickle.dumps({1 << 4_000_000: 1}),
    "lists within lists": b"\x80\x04}(\x8c\x09image_ids" + b"]" * 900_000 + b"a" * 899_999 + b"\x8c\x04text\x8c\x01xu.",
    "longer than a sample can be": pickle.dumps({"image_ids": CODES, "text": "x" * (1 << 20)}),
}


@pytest.mark.parametrize("name", SHARED)
def test_a_small_pickle_cannot_take_for_ever(name, tmp_path, run):
    good = {"image_ids": CODES, "text": "a dog"}
    tar(tmp_path / "0.tar", {"a.pkl": good, "b.pkl": SHARED[name], "c.pkl": good})
    start = time.process_time()
    result = run("import", tmp_path / "0.tar", "--tokenizer", "seed-2", "-o", tmp_path / "out")
    assert time.process_time() - start < 20
    assert result.exit_code == 3
    assert f"skipped: {tmp_path}/0.tar/b.pkl: " in result.stderr
    assert max(map(len, result.stderr.splitlines())) < 400
    assert [sample["text"] for sample in open_tokens(tmp_path / "out")] == ["a dog"] * 2
