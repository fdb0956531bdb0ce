"""`seed-fast tokenize`: options, messages and exit codes."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from seed_fast import SeedTokenizer
from tests.pictures import encoded, picture, write_files


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_files(tmp_path / "photos", {f"{number}.png": encoded(picture(number), "PNG") for number in range(5)})


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_all_good_is_exit_code_0_with_a_table_and_a_notice(photos: Path, tmp_path: Path, seed_fast: Callable) -> None:
    result = seed_fast("tokenize", photos, "--output", tmp_path / "codes.jsonl", "--workers", 0)
    assert result.exit_code == 0
    for stage in ("read", "decode+resize", "ViT", "Q-Former", "nearest code", "write"):
        assert f"\n{stage} " in result.stdout
    assert "5 images encoded" in result.stdout
    assert "skipped" not in result.stdout + result.stderr


def test_an_untrained_model_is_said_to_be_untrained(photos: Path, tmp_path: Path, seed_fast: Callable, tok) -> None:
    SeedTokenizer(tok.config).save_pretrained(tmp_path / "initial")
    for model, untrained in ((tmp_path / "initial", True), ("seed-tiny", False)):
        output = tmp_path / f"{untrained}.jsonl"
        result = seed_fast("tokenize", photos, "-o", output, "--workers", 0, "--model", model)
        assert ("untrained" in result.stderr) == untrained


def test_codes_do_not_depend_on_the_batch_they_are_in(
    photos: Path, tmp_path: Path, seed_fast: Callable, records: Callable
) -> None:
    for size in (1, 3, 5):
        seed_fast("tokenize", photos, "-o", tmp_path / f"{size}.jsonl", "--batch-size", size, "--workers", 0)
    assert records(tmp_path / "1.jsonl") == records(tmp_path / "3.jsonl") == records(tmp_path / "5.jsonl")


def test_resize_is_the_one_asked_for(photos: Path, tmp_path: Path, seed_fast: Callable, records: Callable, tok) -> None:
    from seed_fast.data.image_processor import ImageProcessor

    output = tmp_path / "codes.jsonl"
    seed_fast("tokenize", photos, "-o", output, "--resize", "bilinear_crop", "--workers", 0)
    processor = ImageProcessor(tok.config.image_size, "bilinear_crop")
    for path, codes in records(output).items():
        assert tok.encode(processor(path)).tolist() == [codes]


def test_json_is_one_object_and_nothing_else_on_stdout(photos: Path, tmp_path: Path, seed_fast: Callable) -> None:
    result = seed_fast("tokenize", photos, photos / "no.jpg", "-o", tmp_path / "a.jsonl", "--json", "--workers", 0)
    summary = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert summary["output"] == str(tmp_path / "a.jsonl")
    assert (summary["written"], summary["skipped"], summary["bad_inputs"], summary["resumed"]) == (5, 1, 0, 0)
    assert result.exit_code == summary["exit_code"] == 3
    assert {"name", "where", "seconds", "share"} == set(summary["stages"][0])


def test_the_plan_and_the_modules_write_the_same_codes(photos: Path, tmp_path: Path, seed_fast: Callable) -> None:
    plans = []
    for plan in ("fast", "plain"):
        options = ("--plan", plan, "--workers", 0, "--json")
        plans.append(json.loads(seed_fast("tokenize", photos, "-o", tmp_path / plan, *options).stdout)["plan"])
    assert plans == ["fast", "plain"]
    assert (tmp_path / "fast").read_bytes() == (tmp_path / "plain").read_bytes()


def test_shards_and_files_mix_and_a_torn_shard_is_named(
    photos: Path, tmp_path: Path, seed_fast: Callable, records: Callable
) -> None:
    whole, torn = tmp_path / "0.tar", tmp_path / "1.tar"
    for shard in (whole, torn):
        with tarfile.open(shard, "w") as archive:
            archive.add(photos, "in")
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    output = tmp_path / "codes.jsonl"
    result = seed_fast("tokenize", whole, torn, tmp_path / "no.tar", photos / "3.png", "-o", output, "--workers", 0)
    found = records(output)
    assert result.exit_code == 3
    assert [line for line in result.stderr.splitlines() if line.startswith(f"bad input: {torn}: ")]
    assert f"bad input: {tmp_path}/no.tar: no such shard" in result.stderr
    assert "2 inputs could not be listed" in result.stdout
    assert found[f"{whole}/in/3.png"] == found[str(photos / "3.png")]
    assert 0 < sum(path.startswith(str(torn)) for path in found) < 5


def test_split_runs_write_files_of_their_own(
    photos: Path, tmp_path: Path, seed_fast: Callable, records: Callable, monkeypatch
) -> None:
    seed_fast("tokenize", photos, "-o", tmp_path / "all.jsonl", "--workers", 0)
    seed_fast("tokenize", photos, "-o", tmp_path / "codes.jsonl", "--workers", 0, "--shard", "0/2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    seed_fast("tokenize", photos, "-o", tmp_path / "codes.jsonl", "--workers", 0)
    halves = [records(tmp_path / f"codes.0000{index}-of-00002.jsonl") for index in range(2)]
    assert [len(half) for half in halves] == [3, 2]
    assert halves[0] | halves[1] == records(tmp_path / "all.jsonl")
    both = seed_fast("tokenize", photos, "-o", tmp_path / "codes.jsonl", "--shard", "0/2")
    assert both.exit_code == 2
    assert "--shard 0/2 can't be used under torchrun, which has made this rank 1/2" in both.stderr


def test_npz_parts_hold_the_same_codes(photos: Path, tmp_path: Path, seed_fast: Callable, records: Callable) -> None:
    seed_fast("tokenize", photos, "-o", tmp_path / "codes.jsonl", "--workers", 0)
    assert seed_fast("tokenize", photos, "-o", tmp_path / "out", "--format", "npz", "--workers", 0).exit_code == 0
    with np.load(tmp_path / "out" / "codes.00000.npz") as part:
        paths, codes = part["paths"].tolist(), part["codes"]
    assert codes.dtype == np.uint16
    assert dict(zip(paths, codes.tolist(), strict=True)) == records(tmp_path / "codes.jsonl")


def test_names_with_odd_characters_keep_one_line_each(tmp_path: Path, seed_fast: Callable, records: Callable) -> None:
    names = ["new\nline.png", "undecodable\udcff.png", "Ümläut 日本.png"]
    folder = tmp_path / "photos"
    write_files(folder, dict.fromkeys(names, encoded(picture(1), "PNG")) | {"bad\nname.png": b""})
    result = seed_fast("tokenize", folder, "-o", tmp_path / "codes.jsonl", "--workers", 0)
    assert sorted(records(tmp_path / "codes.jsonl")) == sorted(f"{folder}/{name}" for name in names)
    assert f"skipped: {folder}/bad\\nname.png: the file is empty (0 bytes)" in result.stderr.splitlines()


WRONG = {
    "no output": ([], "--output"),
    "unknown format": (["-o", "{tmp}/x", "--format", "csv"], "csv"),
    "batch of none": (["-o", "{tmp}/x", "--batch-size", "0"], "batch-size"),
    "wrong shard": (["-o", "{tmp}/x", "--shard", "2/2"], "shard must be i/n with 0 <= i < n, such as 0/4, got '2/2'"),
    "wrong device": (["-o", "{tmp}/x", "--device", "gpu"], "--device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
    "other device": (["-o", "{tmp}/x", "--device", "meta"], "--device meta: PyTorch"),
    "preset": (["-o", "{tmp}/x", "--model", "seed-2"], "the weights of this preset don't come with the package"),
    "no preset": (["-o", "{tmp}/x", "--model", "seed-3", "--random-weights"], "--random-weights needs a preset"),
    "resume and overwrite": (["-o", "{tmp}/x", "--resume", "--overwrite"], "give one of them"),
    "folder as output": (["-o", "{tmp}"], "must be a file name (--format npz writes a folder), got a folder"),
    "file as folder": (["-o", "{photos}/1.png", "--format", "npz"], "must be a folder with --format npz, got a file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_is_exit_code_2_and_does_nothing(
    case: str, photos: Path, tmp_path: Path, seed_fast: Callable
) -> None:
    before = sorted(tmp_path.rglob("*"))
    arguments, message = WRONG[case]
    result = seed_fast("tokenize", photos, *(each.format(photos=photos, tmp=tmp_path) for each in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert sorted(tmp_path.rglob("*")) == before
    assert not result.stdout


def test_a_folder_without_images_is_exit_code_2(tmp_path: Path, seed_fast: Callable) -> None:
    (tmp_path / "nothing").mkdir()
    result = seed_fast("tokenize", tmp_path / "nothing", "-o", tmp_path / "codes.jsonl")
    assert (result.exit_code, os.listdir(tmp_path)) == (2, ["nothing"])
    assert f"no image found in {tmp_path}/nothing" in result.stderr


def test_a_model_that_cannot_be_loaded_is_exit_code_1(photos: Path, tmp_path: Path, seed_fast: Callable) -> None:
    result = seed_fast("tokenize", photos, "-o", tmp_path / "codes.jsonl", "--model", photos)
    assert result.exit_code == 1
    assert str(photos) in result.stderr
    assert not (tmp_path / "codes.jsonl.partial").exists()


@pytest.mark.parametrize("name", ["codes.jsonl", "codes.jsonl.partial"])
def test_what_is_there_is_only_replaced_when_asked(
    name: str, photos: Path, tmp_path: Path, seed_fast: Callable, records: Callable
) -> None:
    (tmp_path / name).write_text("precious")
    command = ("tokenize", photos, "-o", tmp_path / "codes.jsonl", "--workers", 0)
    result = seed_fast(*command)
    assert result.exit_code == 2
    assert f"{tmp_path / name}: left by" in result.stderr
    assert (tmp_path / name).read_text() == "precious"
    assert seed_fast(*command, "--overwrite").exit_code == 0
    assert len(records(tmp_path / "codes.jsonl")) == 5
    assert sorted(os.listdir(tmp_path)) == ["codes.jsonl", "photos"]


def test_random_weights_are_labelled(photos: Path, tmp_path: Path, seed_fast: Callable) -> None:
    result = seed_fast("tokenize", photos, "-o", tmp_path / "a", "--random-weights", "--json", "--workers", 0)
    assert result.exit_code == 0
    assert "random weights; the codes mean nothing" in result.stderr
    assert json.loads(result.stdout)["random_weights"] is True
