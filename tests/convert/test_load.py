"""`from_pretrained` and `convert` take what people have: two files, a pair of files, a folder, a hub id."""

from __future__ import annotations

import json
from dataclasses import replace

import huggingface_hub
import pytest
import torch
from safetensors import safe_open

from seed_fast import SeedTokenizer
from seed_fast.convert import convert, from_official, to_official
from seed_fast.testing import random_official_state_dict


def same_weights(a: SeedTokenizer, b: SeedTokenizer) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


def test_an_official_folder_is_converted_on_load(official_folder, seed2, as_loaded, caplog):
    tok = SeedTokenizer.from_pretrained(official_folder)
    assert (tok.config, tok.trained, tok.dtype, tok.training) == (seed2, True, torch.float32, False)
    assert same_weights(tok, from_official(as_loaded, seed2))
    assert len(caplog.records) == 1
    assert "Qformer.cls.predictions.bias" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_is_what_was_asked_for(official_folder, seed2, as_loaded, dtype):
    tok = SeedTokenizer.from_pretrained(official_folder, dtype=dtype)
    assert {parameter.dtype for parameter in tok.parameters()} == {dtype}
    assert same_weights(tok, from_official(as_loaded, seed2, dtype=dtype))


def test_legacy_pickles_load_like_zip_files(official_folder, seed2, as_loaded):
    for path in official_folder.glob("*.pt*"):
        torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    assert same_weights(SeedTokenizer.from_pretrained(official_folder), from_official(as_loaded, seed2))


WRAPPED = {
    "DistributedDataParallel": lambda weights: {f"module.{name}": value for name, value in weights.items()},
    "torch.compile": lambda weights: {f"_orig_mod.{name}": value for name, value in weights.items()},
    "both": lambda weights: {f"_orig_mod.module.{name}": value for name, value in weights.items()},
    "both, the other way": lambda weights: {f"module._orig_mod.{name}": value for name, value in weights.items()},
    "a compiled part": lambda weights: {name.replace("blocks.", "_orig_mod.blocks."): v for name, v in weights.items()},
    "a part of another model": lambda weights: {f"model.{name}": value for name, value in weights.items()},
    "DeepSpeed": lambda weights: {"module": weights, "global_steps": 3, "optimizer": None},
    "Lightning": lambda weights: {"epoch": 3, "state_dict": WRAPPED["a part of another model"](weights)},
    "twice": lambda weights: {"state_dict": {"model": weights, "step": 1}},
    "all of it": lambda weights: {"model": {"module": {"state_dict": WRAPPED["both"](weights)}}},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_what_training_code_wraps_around_a_state_dict_is_taken_off(official_folder, how, seed2, as_loaded, caplog):
    for path in official_folder.glob("*.pt*"):
        torch.save(WRAPPED[how](torch.load(path, weights_only=True)), path)
    expected = from_official(as_loaded, seed2)
    caplog.clear()
    assert same_weights(SeedTokenizer.from_pretrained(official_folder), expected)
    assert "Qformer.cls.predictions.bias" in caplog.text  # surplus is named as ever
    assert same_weights(from_official(WRAPPED[how](as_loaded), seed2), expected)


def test_names_that_become_one_are_an_error(official_folder):
    path = official_folder / "seed_quantizer.pt"
    content = torch.load(path, weights_only=True)
    torch.save(content | {"_orig_mod.query_tokens": content["query_tokens"]}, path)
    with pytest.raises(ValueError, match=r"seed_quantizer\.pt: holds query_tokens twice, also as _orig_mod\.query_tok"):
        SeedTokenizer.from_pretrained(official_folder)


def test_files_may_lie_in_different_folders(official_folder, tmp_path, as_loaded, seed2):
    eva = (official_folder / "eva_vit_g.pth").rename(tmp_path / "encoder.pth")
    tok = SeedTokenizer.from_pretrained([eva, official_folder / "seed_quantizer.pt"], config=seed2)
    assert same_weights(tok, from_official(as_loaded, seed2))


def test_a_missing_image_encoder_is_named_with_its_origin_and_place(official_folder):
    (official_folder / "eva_vit_g.pth").unlink()
    with pytest.raises(FileNotFoundError) as error:
        SeedTokenizer.from_pretrained(official_folder)
    for part in ("eva_vit_g.pth", "LAVIS", "BLIP-2", "https://", f"put it into {official_folder}"):
        assert part in str(error.value)


def test_another_image_size_interpolates_the_position_embedding(official_folder, seed2, as_loaded):
    bigger = replace(seed2, image_size=96)
    tok = SeedTokenizer.from_pretrained([official_folder / "seed_quantizer.pt"], config=bigger)
    old = as_loaded["visual_encoder.pos_embed"]
    new = tok.vit.position_embedding
    assert new.shape == (1, 145, 40)
    assert torch.equal(new[:, 0], old[:, 0])
    # Bicubic interpolation keeps the mean of each quadrant nearly, and a constant exactly.
    assert (new[:, 1:].mean(1) - old[:, 1:].mean(1)).abs().max() < 0.2
    assert tok.encode(torch.randn(1, 3, 96, 96)).shape == (1, 32)


def seed1_pair(folder, config):
    """The two files of SEED-1: the second is loaded over the first."""
    weights = random_official_state_dict(config, seed=4)
    first = {name: value for name, value in weights.items() if not name.startswith(("blocks_text", "quantize"))}
    stale = {"quantize.embedding.weight": torch.zeros_like(weights["quantize.embedding.weight"])}
    second = {name: value for name, value in weights.items() if not name.startswith("visual_encoder.")}
    folder.mkdir()
    torch.save({"model": {**first, **stale}}, folder / "causal_qformer.pth")
    torch.save({"model": second, "epoch": 3}, folder / "seed_tokenizer.pth")
    return weights


@pytest.mark.parametrize("as_list", [False, True])
def test_the_two_files_of_seed_1_are_loaded_in_turn(tmp_path, seed2, as_list):
    config = replace(seed2, head="reverse_qformer", generation_tokens=77)
    folder = tmp_path / "seed-1"
    weights = seed1_pair(folder, config)
    source = [folder / "causal_qformer.pth", folder / "seed_tokenizer.pth"] if as_list else folder
    tok = SeedTokenizer.from_pretrained(source, config=config)
    assert same_weights(tok, from_official(weights, config))


def test_convert_writes_a_folder_that_loads_alike(official_folder, tmp_path):
    steps = []
    out = convert(official_folder, tmp_path / "ours", progress=lambda done, total: steps.append((done, total)))
    assert out == tmp_path / "ours"
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1] < (out / "model.safetensors").stat().st_size
    tok = SeedTokenizer.from_pretrained(out)
    assert tok.trained
    assert same_weights(tok, SeedTokenizer.from_pretrained(official_folder))


def test_convert_keeps_each_type_unless_told(official_folder, tmp_path):
    with safe_open(convert(official_folder, tmp_path / "kept") / "model.safetensors", "pt") as file:
        assert file.get_tensor("vit.cls_token").dtype == torch.float16
        assert file.get_tensor("quantizer.codebook").dtype == torch.float32
    with safe_open(convert(official_folder, tmp_path / "half", dtype="bfloat16") / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'int8'"):
        convert(official_folder, tmp_path / "int8", dtype="int8")
    assert not (tmp_path / "int8").exists()


def test_convert_names_a_preset_that_does_not_fit(official_folder, tmp_path):
    with pytest.raises(ValueError, match=r"must hold 880 tensors, but \d+ are missing: visual_encoder\.blocks\.4\."):
        convert(official_folder, tmp_path / "out", preset="seed-2")
    assert not (tmp_path / "out").exists()


def test_a_foreign_config_json_beside_official_files_is_ignored(official_folder):
    (official_folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ValueError, match="must hold 880 tensors"):  # read as the full-size seed-2, which it isn't
        SeedTokenizer.from_pretrained(official_folder)


def test_a_hub_id_downloads_only_what_is_needed(official_folder, monkeypatch, as_loaded, seed2):
    calls = []

    def snapshot_download(repo_id, *, allow_patterns):
        calls.append((repo_id, allow_patterns))
        return str(official_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    tok = SeedTokenizer.from_pretrained("AILab-CVC/seed-tokenizer-2")
    assert same_weights(tok, from_official(as_loaded, seed2))
    [(repo_id, patterns)] = calls
    assert repo_id == "AILab-CVC/seed-tokenizer-2"
    assert {"config.json", "model.safetensors", "seed_quantizer.pt"} <= set(patterns)


def test_a_failed_download_is_one_clear_error(monkeypatch):
    def snapshot_download(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no cached files\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(OSError, match=r"^some/model: .* not downloadable .*: no cached files$"):
        SeedTokenizer.from_pretrained("some/model")


@pytest.mark.parametrize("name", ["seed-2", "sed-tiny", "a/b/c"])
def test_a_name_without_weights_is_an_error_that_says_what_is_accepted(name):
    with pytest.raises((ValueError, FileNotFoundError), match="hub id"):
        SeedTokenizer.from_pretrained(name)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold model\.safetensors, or one of seed_quantizer\.pt"):
        SeedTokenizer.from_pretrained(tmp_path)


def test_to_official_of_a_loaded_folder_is_the_official_checkpoint(official_folder, as_loaded):
    official = to_official(SeedTokenizer.from_pretrained(official_folder))
    assert official.keys() == as_loaded.keys()
    assert all(torch.equal(official[name], value) for name, value in as_loaded.items())
