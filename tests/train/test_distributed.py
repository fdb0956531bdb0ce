"""Several processes under torchrun train as one process does with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seed_fast.train import checkpoint
from tests.train.tiny import stage1, stage2

ROOT = Path(__file__).parents[2]


def train(folder, processes, *options):
    module = ["-m", "tests.train.tiny", str(folder), *options]
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launch if processes > 1 else []), *module]
    # faulthandler: a rank that ends by a signal shows where.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (folder / "finished").exists()
    (folder / "finished").unlink()
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return checkpoint.read_tensors(checkpoint.latest(folder / "checkpoints"), "model")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Folder and losses over 20 steps of one process, by stage."""
    folders = {stage: tmp_path_factory.mktemp(f"alone{stage}") for stage in (1, 2)}
    return {stage: (folder, train(folder, 1, "--stage", str(stage))) for stage, folder in folders.items()}


@pytest.mark.parametrize("stage", [1, 2])
def test_two_processes_follow_one_with_the_same_global_batch(tmp_path, alone, stage):
    found = train(tmp_path, 2, "--stage", str(stage))
    folder, expected = alone[stage]
    assert len(found) == 20
    assert found == pytest.approx(expected, rel=2e-5)
    start = {name: p.detach() for name, p in (stage1() if stage == 1 else stage2()).named_parameters()}
    one, two = weights(folder), weights(tmp_path)
    apart = torch.cat([(two[name] - value).flatten() for name, value in one.items() if name in start]).norm()
    moved = torch.cat([(start[name] - value).flatten() for name, value in one.items() if name in start]).norm()
    # Not zero: the gradient of a key's bias is rounding alone, and AdamW takes steps of full length along it.
    assert apart < 0.03 * moved


def test_gathering_without_gradients_as_the_official_code_trains_otherwise(tmp_path, alone):
    found = train(tmp_path, 2, "--stage", "1", "--official-gather")
    assert found[0] == pytest.approx(alone[1][1][0], rel=1e-5)  # the loss is the same, what follows from it is not
    assert found[-1] != pytest.approx(alone[1][1][-1], rel=1e-4)


def test_a_run_of_one_process_goes_on_with_two_and_with_one_again(tmp_path, alone):
    source = tmp_path / "run"
    train(source, 1, "--stage", "1", "--epochs", "5")
    for step, processes in ((8, 2), (14, 1)):
        keep_until(source, step)
        found = train(source, processes, "--stage", "1")
        assert found == pytest.approx(alone[1][1], rel=2e-5)


def keep_until(folder, step):
    """Take a run back to one of its checkpoints."""
    run = json.loads((checkpoint.latest(folder / "checkpoints") / "state.json").read_text())
    assert run["step"] >= step
    for path in (folder / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    assert checkpoint.read_state(checkpoint.latest(folder / "checkpoints"))["step"] == step


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_sharded_parameters_train_alike_and_their_checkpoints_are_whole(tmp_path, alone, stage):
    pytest.importorskip("torch", minversion="2.6")
    found = train(tmp_path, 2, "--stage", str(stage), "--fsdp")
    assert found == pytest.approx(alone[stage][1], rel=2e-5)
    for name, value in weights(alone[stage][0]).items():
        assert weights(tmp_path)[name].shape == value.shape
    keep_until(tmp_path, 19)
    assert train(tmp_path, 1, "--stage", str(stage)) == pytest.approx(alone[stage][1], rel=2e-5)
