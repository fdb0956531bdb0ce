"""`seed-fast tokens build`: the codes of the model, every caption, bad pictures named, kill and resume."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from seed_fast.data import shapes
from seed_fast.data.tokens import open_tokens
from seed_fast.model.fast import FastTokenizer


@pytest.fixture
def photos(tmp_path):
    """Five pictures; the second can't be decoded, the fourth has no caption, and the first has two captions."""
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = []
    for number in range(5):
        Image.fromarray(shapes.render(shapes.scene(0, number), 64)).save(folder / f"{number}.png")
        lines.append({"image": f"{number}.png", "caption": [f"picture {number}", "again"][: 1 + (number == 0)]})
    (folder / "1.png").write_bytes(b"not a picture")
    lines[3]["caption"] = ["  "]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_codes_are_those_of_the_model_and_captions_all_there(seed_fast, tok, photos, tmp_path):
    found = seed_fast("tokens", "build", photos, "-o", tmp_path / "out", "--workers", 0, "--batch-size", 2, "--json")
    assert found.exit_code == 3
    assert f"skipped: {photos}/1.png: " in found.stderr
    assert "the caption is empty" in found.stderr
    summary = json.loads(found.stdout)
    assert (summary["written"], summary["skipped"], summary["exit_code"]) == (3, 2, 3)
    store = open_tokens(tmp_path / "out")
    assert [sample["key"] for sample in store] == [f"{photos}/{number}.png" for number in (0, 2, 4)]
    assert [sample["texts"] for sample in store] == [("picture 0", "again"), ("picture 2",), ("picture 4",)]
    for sample in store:
        assert sample["codes"].tolist() == tok.encode(sample["key"])[0].tolist()
    assert (store.tokenizer.name, store.codebook_size) == ("seed-tiny", tok.config.codebook_size)


def test_shares_make_one_store_of_the_same_samples(seed_fast, tmp_path):
    def build(name, *options):
        found = seed_fast("tokens", "build", "shapes:9", "-o", tmp_path / name, "--workers", 0, *options)
        assert found.exit_code == 0, found.output
        return {sample["key"]: sample["codes"].tolist() for sample in open_tokens(tmp_path / name)}

    whole = build("whole")
    seed_fast("tokens", "build", "shapes:9", "-o", tmp_path / "parts", "--workers", 0, "--shard", "0/2")
    assert build("parts", "--shard", "1/2") == whole
    assert len(whole) == 9


def test_a_killed_build_goes_on_where_it_stopped(seed_fast, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "seed_fast", "tokens", "build", "shapes:240", "-o", str(out), "--workers", "0"]
    process = subprocess.Popen([*command, "--batch-size", "4"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = out / "tokens.00000.partial"
    while process.poll() is None and not (partial.is_file() and partial.stat().st_size > 2000):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    refused = seed_fast("tokens", "build", "shapes:240", "-o", out)
    assert refused.exit_code == 2
    assert "left by an earlier run; --resume goes on with it" in refused.stderr
    other = seed_fast("tokens", "build", "shapes:241", "-o", out, "--resume")
    assert other.exit_code == 2
    assert "samples was 240, is 241" in other.stderr
    found = seed_fast("tokens", "build", "shapes:240", "-o", out, "--workers", 0, "--resume", "--json")
    assert found.exit_code == 0, found.output
    summary = json.loads(found.stdout)
    assert summary["resumed"] >= 4
    assert summary["resumed"] + summary["written"] == 240
    keys = [sample["key"] for sample in open_tokens(out)]
    assert keys == [f"shapes:train/0/{number}" for number in range(240)]
    again = seed_fast("tokens", "build", "shapes:240", "-o", out, "--workers", 0, "--resume")
    assert again.exit_code == 0
    assert "finished by an earlier run" in again.stderr


def test_overwrite_replaces_a_store_and_info_shows_it(seed_fast, tmp_path):
    for count in (3, 2):
        options = ["--overwrite"] * (count == 2)
        found = seed_fast("tokens", "build", f"shapes:{count}", "-o", tmp_path / "out", "--workers", 0, *options)
        assert found.exit_code == 0, found.output
    shown = seed_fast("tokens", "info", tmp_path / "out")
    assert "2 (2 caption)" in shown.stdout
    assert "seed-tiny (weights " in shown.stdout
    missing = seed_fast("tokens", "info", tmp_path / "none")
    assert missing.exit_code == 1
    assert f"{tmp_path}/none: expected the folder of a token store, got none" in missing.stderr


def test_what_cannot_be_meant_is_refused_before_anything_is_made(seed_fast, tmp_path):
    out = tmp_path / "out"
    for arguments, message in (
        (["shapes:0", "-o", out], "COUNT at least 1"),
        ([tmp_path / "none", "-o", out], "no such file or folder"),
        (["shapes:3", "-o", out, "--resume", "--overwrite"], "give one of them"),
        (["shapes:3", "-o", out, "--shard", "3/3"], "0 <= i < n"),
        (["shapes:3", "-o", out, "--model", "seed-2"], "weights of this preset"),
    ):
        found = seed_fast("tokens", "build", *arguments)
        assert found.exit_code == 2
        assert message in found.stderr
        assert not out.exists()


def test_a_picture_without_finite_embeddings_is_skipped_and_named(seed_fast, photos, tmp_path, monkeypatch):
    query_embeddings = FastTokenizer.query_embeddings

    def broken(self, features):
        causal = query_embeddings(self, features).clone()
        causal[0, 0, 0] = torch.inf  # of the first image of each batch
        return causal

    monkeypatch.setattr(FastTokenizer, "query_embeddings", broken)
    options = ("--workers", 0, "--batch-size", 8, "--json")
    result = seed_fast("tokens", "build", photos, "-o", tmp_path / "out", *options)
    assert result.exit_code == 3
    assert f"skipped: {photos}/0.png: its embedding in torch.float32 is not finite, so it has no codes" in result.stderr
    assert [sample["key"] for sample in open_tokens(tmp_path / "out")] == [
        f"{photos}/{number}.png" for number in (2, 4)
    ]
