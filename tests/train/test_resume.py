"""A run that was stopped, terminated or killed goes on to the same losses and the same weights, to the bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seed_fast.convert.files import CheckpointError
from seed_fast.train import checkpoint
from tests.train.tiny import RECIPE, loop, stage1, stage2

ROOT = Path(__file__).parents[2]


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def final(folder):
    path = checkpoint.latest(folder / "checkpoints")
    return {stem: checkpoint.read_tensors(path, stem) for stem in ("model", "optimizer")}


def assert_equal_to_the_bit(left, right):
    assert losses(left) == losses(right)
    first, second = final(left), final(right)
    for stem in first:
        assert first[stem].keys() == second[stem].keys()
        assert all(torch.equal(value, second[stem][name]) for name, value in first[stem].items())


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("make", [stage1, stage2])
def test_a_stopped_run_resumes_to_the_bit(tmp_path, make, dtype):
    recipe = replace(RECIPE, dtype=dtype, clip=1.0, ema=0.9)
    whole = loop(make(dropout=0.1), tmp_path / "whole", recipe=recipe)
    assert whole()
    half = loop(make(dropout=0.1), tmp_path / "half", recipe=recipe)
    half.optimizer.register_step_post_hook(lambda *_: half.step == 6 and os.kill(os.getpid(), signal.SIGTERM))
    assert not half()  # SIGTERM: the step ends, a checkpoint is written
    assert half.step == 7
    rest = loop(make(dropout=0.1), tmp_path / "half", recipe=recipe, resume=True)
    assert rest.step == 7
    assert rest()
    assert_equal_to_the_bit(tmp_path / "whole", tmp_path / "half")
    assert half.batches.seen + rest.batches.seen == whole.batches.seen  # no pair twice, none left out


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    loop(stage2(), tmp_path)()
    before, found = losses(tmp_path), final(tmp_path)
    assert loop(stage2(), tmp_path, resume=True)()
    assert losses(tmp_path) == before
    assert all(torch.equal(value, final(tmp_path)["model"][name]) for name, value in found["model"].items())


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    loop(stage2(), tmp_path, save_every=3, keep=2)()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000018", "step-00000020"]


def test_leftovers_of_a_kill_are_not_taken_for_checkpoints(tmp_path):
    folder = tmp_path / "checkpoints"
    for name in (".step-00000099.partial", ".step-00000098.old"):
        (folder / name).mkdir(parents=True)
        (folder / name / "state.json").write_text("{")
    assert checkpoint.latest(folder) is None
    checkpoint.write(folder, 5, {"model": {"x": torch.ones(2)}}, {"step": 5}, keep=1)
    assert [path.name for path in folder.iterdir()] == ["step-00000005"]


def test_damaged_checkpoints_are_named(tmp_path):
    loop(stage2(), tmp_path)()
    path = checkpoint.latest(tmp_path / "checkpoints")
    weights = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(weights[:-9])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: must be a whole"):
        loop(stage2(), tmp_path, resume=True)
    (path / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match="made by another model or options"):
        loop(stage1(), tmp_path, resume=True)
    (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"state\.json: must be the state of a training run"):
        loop(stage2(), tmp_path, resume=True)


def start(folder, *options):
    command = [sys.executable, "-m", "tests.train.tiny", str(folder), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait(process):
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors.decode()


def kill_until_finished(folder, kills, generator, *options):
    """Kill the training again and again: mostly within a second of its next checkpoint, else anywhere before. Then let
    it finish. Returns the steps at which it went on.
    """
    steps = []
    while len(steps) < kills:
        before = checkpoint.latest(folder / "checkpoints")
        process = start(folder, *options)
        is_early = generator.random() < 0.2
        while not is_early and process.poll() is None and checkpoint.latest(folder / "checkpoints") == before:
            time.sleep(0.01)
        time.sleep(generator.uniform(0.0, 2.0 if is_early else 0.6))
        process.kill()
        code, errors = wait(process)
        assert code == -signal.SIGKILL, errors or "it finished too soon to be killed that often"
        newest = checkpoint.latest(folder / "checkpoints")
        steps.append(checkpoint.read_state(newest)["step"] if newest else 0)
    code, errors = wait(start(folder, *options))
    assert code == 0, errors
    assert (folder / "finished").exists()
    return steps


def test_after_sigkill_the_weights_are_those_of_an_unbroken_run(tmp_path):
    options = ["--dropout", "0.1", "--epochs", "10"]
    assert wait(start(tmp_path / "whole", *options))[0] == 0
    steps = kill_until_finished(tmp_path / "killed", 2, random.Random(0), *options, "--pause", "0.1")
    assert 0 < steps[0] < steps[1] < 40
    assert_equal_to_the_bit(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_twenty_sigkills_at_random_moments(tmp_path):
    options = ["--dropout", "0.1", "--epochs", "60", "--stage", "1", "--save-every", "2", "--ema", "0.9"]
    assert wait(start(tmp_path / "whole", *options))[0] == 0
    steps = kill_until_finished(tmp_path / "killed", 20, random.Random(1), *options, "--pause", "0.1")
    assert len(set(steps)) > 10  # most kills hit it while it trained
    assert_equal_to_the_bit(tmp_path / "whole", tmp_path / "killed")


def test_sigterm_saves_and_exits_with_0(tmp_path):
    process = start(tmp_path, "--pause", "0.2", "--save-every", "1000")
    while not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_bytes():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    code, errors = wait(process)
    assert code == 0, errors
    assert checkpoint.latest(tmp_path / "checkpoints") is not None
    assert not (tmp_path / "finished").exists()
