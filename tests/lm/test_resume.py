"""Runs of language models that end at any moment, and runs on several ranks: the same weights and metrics.

Processes are forked, which spares them the seconds of importing; each computes on one thread.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import socket
import sys
import time
import warnings

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

pytest.importorskip("peft")

from seed_fast.cli import app
from seed_fast.train.lm import LanguageModelTask
from tests.lm.tiny import base, store

# Python 3.12 warns of forks beside threads; these children use none of their parent's.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    return {"opt": base(folder / "opt"), "store": store(folder / "store")}


def work(arguments, environment, pause):
    """What a child does: `seed-fast train lm`, with a pause in each step."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    warnings.resetwarnings()  # as in a process of its own, not as under pytest
    forward = LanguageModelTask.forward

    def paused(self, batch):
        time.sleep(pause)
        return forward(self, batch)

    LanguageModelTask.forward = paused
    done = CliRunner().invoke(app, ["train", "lm", *arguments])
    if done.exit_code:
        print(done.output, done.exception, file=sys.stderr)
    sys.exit(done.exit_code)


def start(places, output, *options, ranks=1, pause=0.0):
    arguments = ["--data", places["store"], "--model", places["opt"], "-o", output, "--length", 64, "--batch-size", 4,
                 "--accumulate", 1, "--device", "cpu", "--log-every", 1, "--lr", 0.01, *options]  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(ranks):
        environment = {"GLOO_SOCKET_IFNAME": "lo"}
        if ranks > 1:  # as torchrun
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_PORT": port,
                            "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}  # fmt: skip
        process = multiprocessing.get_context("fork").Process(
            target=work, args=(list(map(str, arguments)), environment, pause)
        )
        process.start()
        processes.append(process)
    return processes


def train(*given, **how):
    for process in start(*given, **how):
        process.join(120)
        assert process.exitcode == 0


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_a_killed_run_goes_on_to_the_same_weights(places, tmp_path):
    options = ["--steps", 12, "--save-every", 1, "--accumulate", 2]
    train(places, tmp_path / "whole", *options)
    generator, log = random.Random(0), tmp_path / "killed" / "metrics.jsonl"
    for steps in (3, 7):
        (process,) = start(places, tmp_path / "killed", *options, "--resume", pause=0.05)
        while process.is_alive() and not (log.exists() and log.read_bytes().count(b"\n") >= steps):
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode < 0
    train(places, tmp_path / "killed", *options, "--resume")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def alone(places, tmp_path_factory):
    """What one process makes, by dtype."""
    folders = {}
    for dtype in ("float32", "float16"):
        folders[dtype] = tmp_path_factory.mktemp(dtype)
        train(places, folders[dtype], "--steps", 6, "--lora-dropout", 0, "--dtype", dtype)
    return folders


@pytest.mark.parametrize(
    ("fsdp", "dtype"),
    [(False, "float32"), (True, "float32"), pytest.param(True, "float16", marks=pytest.mark.slow)],
)
def test_two_ranks_follow_one_with_the_same_global_batch(places, tmp_path, alone, fsdp, dtype):
    options = ["--steps", 6, "--lora-dropout", 0, "--dtype", dtype, *(["--fsdp"] if fsdp else [])]
    train(places, tmp_path, *options, ranks=2)
    one, two = weights(alone[dtype]), weights(tmp_path)
    assert losses(tmp_path) == pytest.approx(losses(alone[dtype]), rel=1e-4 if dtype == "float32" else 5e-3)
    assert one.keys() == two.keys()
    apart = torch.cat([(one[name] - two[name]).flatten() for name in one]).norm()
    assert apart < 0.1 * torch.cat([value.flatten() for value in one.values()]).norm()


@pytest.mark.slow
def test_a_sharded_run_of_two_ranks_goes_on_with_one(places, tmp_path, alone):
    options = ["--lora-dropout", 0, "--steps", 6, "--save-every", 3, "--keep", 9]
    train(places, tmp_path, *options, "--fsdp", ranks=2)
    (tmp_path / "checkpoints" / "step-00000006" / "state.json").unlink()
    os.rename(tmp_path / "checkpoints" / "step-00000006", tmp_path / "lost")
    train(places, tmp_path, *options, "--resume")
    assert losses(tmp_path) == pytest.approx(losses(alone["float32"]), rel=1e-4)
