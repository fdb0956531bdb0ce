"""`seed-fast train`: both stages one after the other, official checkpoints in, messages and exit codes."""

from __future__ import annotations

import json
import re

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from seed_fast import SeedTokenizer
from seed_fast.cli import app
from seed_fast.convert import to_official, to_official_stage1
from seed_fast.convert.contrast import load_contrast
from tests.train.tiny import CONFIG

COMMON = ["--data", "shapes:48", "--batch-size", "16", "--epochs", "2", "--warmup-steps", "2", "--workers", "0"]
COMMON += ["--log-every", "1", "--device", "cpu"]


def call(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of stage 1 and of stage 2 after it."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    first = call(
        "stage1", *COMMON, "--model", folder / "config.json", "-o", folder / "1", "--projection-dim", 8,
        "--train-vision", "--validation", "shapes:8", "--max-tokens", 24,
    )  # fmt: skip
    assert first.exit_code == 0, first.output
    second = call(
        "stage2", *COMMON, "--model", folder / "1", "-o", folder / "2", "--target", "stage1-text", "--codebook-init",
        "data", "--cache-features", folder / "cache", "--validation", "shapes:8",
    )  # fmt: skip
    assert second.exit_code == 0, second.output
    assert re.search(r"48 samples x .* MB = .* GB", second.output)
    assert len((folder / "cache" / "rank-00000.keys").read_text().splitlines()) == 56  # those of the validation too
    return folder


def test_stage_2_keeps_features_in_half_precision(trained):
    run = call(
        "stage2", *COMMON, "--model", trained / "1", "-o", trained / "half", "--target", "stage1-text",
        "--codebook-init", "data", "--cache-features", trained / "half-cache", "--dtype", "bfloat16",
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    config = SeedTokenizer.from_pretrained(trained / "half").config
    rows = (trained / "half-cache" / "rank-00000.rows").stat().st_size
    assert rows == 48 * config.num_codes * config.qformer_dim * 2


def test_both_stages_leave_a_tokenizer_and_its_contrast(trained):
    one, two = (SeedTokenizer.from_pretrained(trained / stage) for stage in ("1", "2"))
    assert (one.trained, two.trained) == (False, True)
    for name, value in one.qformer.state_dict().items():
        assert torch.equal(value, two.qformer.state_dict()[name])  # frozen in stage 2
    assert not torch.equal(one.quantizer.codebook, two.quantizer.codebook)
    model, captions = load_contrast(trained / "2", two)
    assert model.text_embedding(*captions(["a red circle"])).shape == (1, 8)
    assert captions.max_tokens == len(model.text.position_embedding) == 24
    assert captions(["red " * 100])[0].shape == (1, 24)
    lines = [json.loads(line) for line in (trained / "2" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert {"usage", "perplexity", "dead", "vq", "recon", "image"} <= lines[0].keys()
    assert {"validation_loss", "validation_usage"} <= lines[-1].keys()


def test_a_second_run_into_the_same_folder_wants_resume(trained):
    arguments = ["stage1", *COMMON, "--model", trained / "config.json", "-o", trained / "1", "--projection-dim", 8]
    arguments += ["--max-tokens", 24]
    refused = call(*arguments, "--train-vision")
    assert refused.exit_code == 2
    assert "--resume goes on with it" in refused.output
    before = (trained / "1" / "model.safetensors").read_bytes()
    assert call(*arguments, "--train-vision", "--resume").exit_code == 0
    assert (trained / "1" / "model.safetensors").read_bytes() == before
    changed = call(*arguments, "--train-vision", "--resume", "--lr", 1e-3)
    assert changed.exit_code == 1
    assert "lr must stay 3e-05, as the run began with, got 0.001" in changed.output


def test_a_corrupt_picture_is_replaced_and_counted(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    entries = []
    for number in range(17):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (20, 20), (number * 10, 0, 0)).save(path)
        entries.append({"image": path.name, "caption": f"number {number}"})
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:40])
    (tmp_path / "list.json").write_text(json.dumps(entries))
    arguments = ["--model", tmp_path / "config.json", "--projection-dim", 8, "--data", tmp_path / "list.json"]
    done = call("stage1", *COMMON, *arguments, "--batch-size", 16, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    found = re.search(r"(\d+) times a sample could not be used", done.output)
    assert found is not None, done.output
    assert 1 <= int(found[1]) <= 4  # two epochs of 16 out of 17, and the words' pass is not counted


def test_training_begins_from_official_files(trained, tmp_path):
    tok = SeedTokenizer.from_pretrained(trained / "1")
    model, _ = load_contrast(trained / "1", tok)
    weights = to_official_stage1(model)
    eva = {name.removeprefix("visual_encoder."): v for name, v in weights.items() if name.startswith("visual_encoder.")}
    torch.save(eva, tmp_path / "eva_vit_g.pth")
    torch.save({"model": {n: v for n, v in weights.items() if "visual_encoder" not in n and "text_proj" not in n}},
               tmp_path / "blip2.pth")  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    done = call(
        "stage1", *COMMON, "--model", tmp_path / "config.json", "--init", tmp_path / "eva_vit_g.pth",
        "--init", tmp_path / "blip2.pth", "-o", tmp_path / "out", "--projection-dim", 8, "--max-tokens", 24, "--lr", 0,
        "--min-lr", 0, "--warmup-lr", 0,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    again = SeedTokenizer.from_pretrained(tmp_path / "out")
    for name, value in tok.qformer.state_dict().items():
        assert torch.equal(value, again.qformer.state_dict()[name])
    assert torch.equal(tok.vit.cls_token, again.vit.cls_token)


def test_a_checkpoint_of_the_official_stage_2_loads_with_what_it_froze(trained, tmp_path):
    """LAVIS saves {"model", "optimizer", ...} and drops frozen parameters, which are stage 1's and the ViT's."""
    tok = SeedTokenizer.from_pretrained(trained / "2")
    weights = to_official(tok)
    frozen = ("visual_encoder.", "ln_vision.", "Qformer.", "query_tokens")
    stage1 = {name: value for name, value in weights.items() if name.startswith(frozen)}
    stage2 = {name: value for name, value in weights.items() if not name.startswith(frozen)}
    rest = {"optimizer": {"state": {}}, "config": {"run": {"lr": 1e-4}}, "scaler": None, "epoch": 3}
    torch.save({"model": stage1, **rest}, tmp_path / "stage1.pth")
    torch.save({"model": stage2, **rest}, tmp_path / "checkpoint_3.pth")
    files = [tmp_path / "stage1.pth", tmp_path / "checkpoint_3.pth"]
    again = SeedTokenizer.from_pretrained(files, config=CONFIG)
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(again.encode(pixels), tok.encode(pixels))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "seed-tiny", "--data", "/nowhere"], 1, "/nowhere: no such file or folder"),
        (["--model", "seed-tiny", "--batch-size", 64], 1, "48 samples make no batch of 64"),
        (["--model", "seed-tiny", "--accumulate", 3], 2, "batch_size must be a multiple of ranks * accumulate"),
        (["--model", "seed-tiny", "--min-lr", 1], 2, "floor must be in 0..peak"),
        (["--model", "nowhere"], 1, "nowhere: no such folder or file"),
        (["--model", "seed-tiny", "--device", "gpu"], 2, "--device must be auto, cpu, cuda or cuda:N"),
        (["--model", "seed-tiny", "--cache-features", "c", "--train-vision"], 2, "can't be used with --train-vision"),
        (["--model", "seed-tiny", "--cache-features", "c", "--augment"], 2, "can't be used with --augment"),
        (["--model", "seed-tiny", "--init", "/nowhere.pth"], 1, "/nowhere.pth: no such file"),
    ],
)
def test_mistakes_are_named_before_training(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    result = call("stage1", *COMMON, "-o", "out", *arguments)
    assert (result.exit_code, message in result.output) == (code, True), result.output
    assert not (tmp_path / "out" / "checkpoints").exists()
