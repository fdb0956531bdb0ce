"""`seed-fast profile`: table, JSON, folder and picture; what is wrong is said before anything is measured."""

from __future__ import annotations

import builtins
import json
import sys

import pytest
import torch
from typer.testing import CliRunner

from seed_fast import SeedConfig
from seed_fast.cli import app
from seed_fast.profile import run


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    ceilings = {"gemm_float32_gflops": 100.0, "gemm_bfloat16_gflops": 200.0, "copy_gb_per_s": 10.0}
    monkeypatch.setattr(run, "ceilings", lambda device, quick: dict(ceilings))


def invoke(*arguments):
    return CliRunner().invoke(app, ["profile", "--batch-size", "2", "--rounds", "1", *map(str, arguments)])


@pytest.mark.parametrize("plan", ["fast", "plain"])
def test_json_says_what_was_measured(plan):
    result = invoke("--json", "--plan", plan, "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["plan"], found["dtype"], found["batch_size"], found["device"]) == (plan, "bfloat16", 2, "cpu")
    assert found["threads"] == torch.get_num_threads()
    dtypes = {stage["name"]: stage["dtype"] for stage in found["stages"]}
    assert dtypes["ViT"] == "bfloat16"
    assert dtypes["nearest code"] == ("float32" if plan == "fast" else "bfloat16")


def test_the_folder_holds_table_json_and_picture(tmp_path):
    pytest.importorskip("matplotlib")
    result = invoke("--output", tmp_path / "new", "--trace", tmp_path / "trace.json")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["profile.json", "profile.png", "profile.txt"]
    assert (tmp_path / "new" / "profile.txt").read_text() == result.stdout
    assert (tmp_path / "new" / "profile.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "new" / "profile.json").read_text())["model"] == "seed-tiny"
    assert (tmp_path / "trace.json").is_file()


def test_without_matplotlib_the_install_line_is_named_and_the_rest_written(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *others, **more):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real(name, *others, **more)

    monkeypatch.delitem(sys.modules, "seed_fast.profile.figure", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    result = invoke("--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert "pip install 'seed_fast[bench]'" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["profile.json", "profile.txt"]


def test_the_picture_draws_what_a_profile_holds(found):
    pytest.importorskip("matplotlib")
    from seed_fast.profile.figure import draw

    assert draw(found).startswith(b"\x89PNG")


def test_an_image_of_the_user_is_decoded(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(run.photo())
    result = invoke("--image", tmp_path / "photo.jpg", "--json")
    assert json.loads(result.stdout)["image_bytes"] == (tmp_path / "photo.jpg").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "seed-2"], 2, "--random-weights to measure speed"),
        (["--device", "gpu"], 2, "--device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        (["--output", "{tmp}/file"], 2, "--output must be a folder, got a file"),
        (["--trace", "{tmp}"], 2, "--trace must be a file name, got a folder"),
        (["--image", "{tmp}/file"], 1, "not an image of a supported format"),
        (["--image", "{tmp}/none.jpg"], 1, "no such file"),
        (["--batch-size", "0"], 2, "--batch-size"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_measured(arguments, code, message, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no image")
    monkeypatch.setattr(run, "profile", lambda *a, **k: pytest.fail("measured"))
    result = invoke(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())


def test_steps_are_said_while_it_measures_and_what_was_left_out_is_in_the_result():
    result = invoke("--json", "--rounds", "3", "--seconds", "1")
    assert result.exit_code == 0, result.output
    assert "measuring what this machine reaches" in result.stderr
    assert "measuring batches of" in result.stderr
    found = json.loads(result.stdout)
    assert found["rounds"] == 3 or found["notes"]


def test_random_weights_for_timing_are_finite_and_of_every_entry_its_own():
    tok = run.tokenizer_for_timing(SeedConfig.preset("seed-tiny"), torch.device("cpu"), torch.float32)
    assert len(tok.quantizer.codebook.unique(dim=0)) == len(tok.quantizer.codebook)
    assert tok.encode(torch.randn(2, 3, 64, 64)).shape == (2, 32)
    assert float(tok.vision_norm.weight.detach().mean()) == 1
