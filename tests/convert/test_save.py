"""`save_pretrained`: what comes back is what was saved, and no moment shows half of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from seed_fast import SeedTokenizer
from seed_fast.convert import from_official
from seed_fast.convert.files import Entry, write_safetensors
from seed_fast.convert.save import write_folder
from seed_fast.testing import random_official_state_dict


@pytest.fixture
def tok(config):
    return from_official(random_official_state_dict(config, seed=5), config)


def test_a_saved_model_loads_as_it_was(tok, tmp_path):
    tok.save_pretrained(tmp_path / "model")
    again = SeedTokenizer.from_pretrained(tmp_path / "model")
    assert again.config == tok.config
    assert again.trained is True
    assert all(torch.equal(a, b) for a, b in zip(tok.parameters(), again.parameters(), strict=True))
    pixels = torch.randn(2, 3, 64, 64)
    codes = tok.encode(pixels)
    assert torch.equal(again.encode(pixels), codes)
    assert torch.equal(again.decode(codes), tok.decode(codes))


def test_the_folder_holds_three_files_and_no_leftovers(tok, tmp_path):
    folder = tmp_path / "deep" / "model"
    tok.save_pretrained(folder)
    tok.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert json.loads((folder / "config.json").read_text()) == tok.config.to_dict()


def test_the_type_of_the_weights_is_kept_on_disk(tok, tmp_path):
    tok.bfloat16().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == tok.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in tok.state_dict().items())
    assert SeedTokenizer.from_pretrained(tmp_path).dtype == torch.float32
    assert SeedTokenizer.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_an_untrained_model_stays_untrained_and_its_card_says_so(seed2, tmp_path):
    SeedTokenizer(seed2).save_pretrained(tmp_path)
    assert SeedTokenizer.from_pretrained(tmp_path).trained is False
    assert "**Untrained**" in (tmp_path / "README.md").read_text()


def test_other_files_of_the_folder_are_kept(tok, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    tok.save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_save_that_fails_leaves_the_old_one(tok, tmp_path):
    folder = tmp_path / "model"
    tok.save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    state = tok.state_dict()
    entries = {name: Entry(tensor.shape, tensor.dtype) for name, tensor in state.items()}

    def fail_midway():
        yield from list(state.items())[:5]
        raise OSError("disk full")

    for target in (folder, tmp_path / "new"):
        with pytest.raises(OSError, match="disk full"):
            write_folder(target, tok.config, fail_midway(), trained=True, entries=entries)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_writer_refuses_tensors_that_were_not_announced(tmp_path):
    entries = {"a": Entry(torch.Size([2]), torch.float32)}
    for tensors in ([("a", torch.zeros(3))], [("b", torch.zeros(2))], [], [("a", torch.zeros(2))] * 2):
        with pytest.raises(ValueError, match="announced"):
            write_safetensors(tmp_path / "x.safetensors", entries, tensors, {})
    with pytest.raises(ValueError, match=r"must be of a floating-point type, got torch\.int64"):
        write_safetensors(tmp_path / "x.safetensors", {"a": Entry(torch.Size([2]), torch.int64)}, [], {})


SAVE_FOR_EVER = """
import sys, torch
from seed_fast import SeedTokenizer
tok = SeedTokenizer.from_pretrained(sys.argv[1])
value = 0
while True:
    value += 1
    with torch.no_grad():
        for parameter in tok.parameters():
            parameter.fill_(value)
    tok.save_pretrained(sys.argv[1])
    print("saved", flush=True)
"""


def test_a_killed_save_leaves_a_whole_model(tmp_path):
    folder = tmp_path / "model"
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    with torch.no_grad():
        for parameter in tok.parameters():
            parameter.zero_()
    tok.save_pretrained(folder)
    for delay in (0.0, 0.01, 0.03):
        process = subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, folder], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"saved\n"
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        tok = SeedTokenizer.from_pretrained(folder)
        values = {value for parameter in tok.parameters() for value in parameter.unique().tolist()}
        assert len(values) == 1, "weights of two saves are mixed"
        assert min(values) > 0, "not even the save that was finished is there"
    tok.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
