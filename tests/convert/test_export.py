"""`seed-fast convert --to-official`: what we trained leaves as official files, and comes back the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from typer.testing import CliRunner

from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.cli import app
from seed_fast.convert import from_official_stage1, official_shapes
from seed_fast.convert.contrast import save_contrast
from seed_fast.model.captions import WordTokenizer
from seed_fast.model.stage1 import Stage1Model
from tests.train.tiny import CONFIG


def convert(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def read(path):
    return torch.load(path, weights_only=True)


@pytest.fixture
def model():
    torch.manual_seed(0)
    captions = WordTokenizer.of_captions(["a red circle"])
    return Stage1Model(SeedTokenizer(CONFIG), captions.size, projection_dim=8), captions


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_a_trained_folder_becomes_official_files_and_comes_back(model, tmp_path):
    stage1, captions = model
    stage1.tokenizer.trained = True
    stage1.tokenizer.save_pretrained(tmp_path / "run")
    save_contrast(tmp_path / "run", stage1.state_dict(), captions)
    done = convert("--to-official", tmp_path / "run", tmp_path / "official")
    assert done.exit_code == 0, done.output
    names = ["config.json", "eva_vit_g.pth", "seed_quantizer.pt", "stage1.pth"]
    assert sorted(path.name for path in (tmp_path / "official").iterdir()) == names
    # As released: the image encoder is in its own file, and no name is ours.
    weights, eva = (read(tmp_path / "official" / name) for name in ("seed_quantizer.pt", "eva_vit_g.pth"))
    buffers = {"Qformer.bert.embeddings.position_ids"}
    assert (weights.keys() | {f"visual_encoder.{name}" for name in eva}) - buffers == set(official_shapes(CONFIG))
    assert not any(name.startswith("visual_encoder") for name in weights)
    again = SeedTokenizer.from_pretrained(tmp_path / "official")
    assert_same(again.state_dict(), stage1.tokenizer.state_dict())
    assert convert(tmp_path / "official", tmp_path / "ours").exit_code == 0
    assert_same(SeedTokenizer.from_pretrained(tmp_path / "ours").state_dict(), stage1.tokenizer.state_dict())
    first = read(tmp_path / "official" / "stage1.pth")["model"]
    first |= {f"visual_encoder.{name}": value for name, value in eva.items()}
    found = from_official_stage1(first, CONFIG).state_dict()
    own = {name: value for name, value in stage1.state_dict().items() if not name.startswith("tokenizer.")}
    own |= {f"tokenizer.qformer.{name}": value for name, value in stage1.tokenizer.qformer.state_dict().items()}
    assert_same({name: found[name] for name in own}, own)


def test_what_stage_1_left_has_no_quantizer_to_export(model, tmp_path):
    stage1, captions = model
    stage1.tokenizer.save_pretrained(tmp_path / "run")
    save_contrast(tmp_path / "run", stage1.state_dict(), captions)
    assert convert("--to-official", tmp_path / "run", tmp_path / "official").exit_code == 0
    assert not (tmp_path / "official" / "seed_quantizer.pt").exists()
    assert "query_tokens" in read(tmp_path / "official" / "stage1.pth")["model"]


@pytest.mark.parametrize("preset", ["seed-1", "seed-2-rqf"])
def test_other_formats_come_back_too(preset, tmp_path):
    preset = SeedConfig.preset(preset)
    names = ("head", "generation_tokens")
    tok = SeedTokenizer(dataclasses.replace(CONFIG, reverse_depth=2, **{n: getattr(preset, n) for n in names}))
    tok.trained = True
    tok.save_pretrained(tmp_path / "run")
    assert convert("--to-official", tmp_path / "run", tmp_path / "official").exit_code == 0
    assert_same(SeedTokenizer.from_pretrained(tmp_path / "official").state_dict(), tok.state_dict())


def test_mistakes_are_named(tmp_path):
    SeedTokenizer(CONFIG).save_pretrained(tmp_path / "run")
    untrained = convert("--to-official", tmp_path / "run", tmp_path / "official")
    assert untrained.exit_code == 1
    assert "must hold trained weights to export, got initial ones" in untrained.output
    assert not (tmp_path / "official").exists()
    surplus = convert("--to-official", tmp_path / "run", tmp_path / "b", "--dtype", "float16")
    assert surplus.exit_code == 2
    assert "neither --preset nor --dtype" in surplus.output
    tok = SeedTokenizer(CONFIG)
    tok.trained = True
    tok.save_pretrained(tmp_path / "run")
    (tmp_path / "file").write_text("")
    assert "file: must be a folder, got a file" in convert("--to-official", tmp_path / "run", tmp_path / "file").output
