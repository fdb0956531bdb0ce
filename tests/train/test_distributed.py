"""Several processes under torchrun train as one process does with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seed_fast.testing import check_budget, error_ratio
from seed_fast.train import checkpoint
from tests.train.tiny import loop, stage1, stage2

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


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """Losses and parameters of the same steps in float64, by stage."""
    found = {}
    for stage, make in ((1, stage1), (2, stage2)):
        folder, task = tmp_path_factory.mktemp(f"truth{stage}"), make().double()
        assert loop(task, folder)()
        losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found[stage] = torch.tensor(losses, dtype=torch.float64), dict(task.named_parameters())
    return found


def check_losses(found, expected, truth):
    """Losses of 20 steps are as near to float64 as those of one process are, three times."""
    assert len(found) == 20
    check_budget(torch.tensor(found), truth, torch.tensor(expected), factor=3)


@pytest.mark.parametrize("stage", [1, 2])
def test_two_processes_follow_one_with_the_same_global_batch(tmp_path, alone, truth, stage):
    found = train(tmp_path, 2, "--stage", str(stage))
    folder, expected = alone[stage]
    losses, parameters = truth[stage]
    check_losses(found, expected, losses)
    # Not zero: the gradient of a key's bias is rounding alone, and AdamW takes steps of full length along it.
    one, two = (weights(each) for each in (folder, tmp_path))
    flat = lambda tensors: torch.cat([tensors[n].detach().flatten() for n in parameters if n in one])  # noqa: E731
    assert error_ratio(flat(two), flat(one), flat(parameters)) <= 3


@pytest.mark.parametrize("stage", [1, 2])
def test_two_processes_in_float64_differ_from_one_by_less_than_float32_can_tell(tmp_path, truth, stage):
    found = torch.tensor(train(tmp_path, 2, "--stage", str(stage), "--double"), dtype=torch.float64)
    assert ((found - truth[stage][0]).abs() <= torch.finfo(torch.float32).eps * truth[stage][0]).all()


def test_gathering_without_gradients_as_the_official_code_trains_otherwise(tmp_path, truth):
    found = torch.tensor(train(tmp_path, 2, "--stage", "1", "--official-gather", "--double"), dtype=torch.float64)
    apart = (found - truth[1][0]).abs() / truth[1][0]
    assert apart[0] <= torch.finfo(torch.float32).eps  # the loss is the same, what follows from it is not
    assert apart[-1] > 1e-4


def test_a_run_of_one_process_goes_on_with_two_and_with_one_again(tmp_path, alone, truth):
    source = tmp_path / "run"
    train(source, 1, "--stage", "1", "--epochs", "5")
    for step, processes in ((8, 2), (14, 1)):
        keep_until(source, step)
        found = train(source, processes, "--stage", "1")
        check_losses(found, alone[1][1], truth[1][0])


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
def test_sharded_parameters_train_alike_and_their_checkpoints_are_whole(tmp_path, alone, truth, stage):
    pytest.importorskip("torch", minversion="2.6")
    found = train(tmp_path, 2, "--stage", str(stage), "--fsdp")
    check_losses(found, alone[stage][1], truth[stage][0])
    for name, value in weights(alone[stage][0]).items():
        assert weights(tmp_path)[name].shape == value.shape
    keep_until(tmp_path, 19)
    check_losses(train(tmp_path, 1, "--stage", str(stage)), alone[stage][1], truth[stage][0])
