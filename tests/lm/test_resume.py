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
from seed_fast.testing import check_budget, error_ratio
from seed_fast.train.lm import LanguageModelTask
from tests.lm.tiny import base, store

# Python 3.12 warns of forks beside threads; these children use none of their parent's.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    return {"opt": base(folder / "opt"), "store": store(folder / "store")}


def work(arguments, environment, pause, double):
    """What a child does: `seed-fast train lm`, with a pause in each step; with `double`, in float64."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    warnings.resetwarnings()  # as in a process of its own, not as under pytest
    forward, begin = LanguageModelTask.forward, LanguageModelTask.__init__

    def paused(self, batch):
        time.sleep(pause)
        return forward(self, batch)

    def begun(self, *arguments, **options):
        begin(self, *arguments, **options)
        self.double()

    LanguageModelTask.forward = paused
    if double:
        LanguageModelTask.__init__ = begun
    done = CliRunner().invoke(app, ["train", "lm", *arguments])
    if done.exit_code:
        print(done.output, done.exception, file=sys.stderr)
    sys.exit(done.exit_code)


def start(places, output, *options, ranks=1, pause=0.0, double=False):
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
            target=work, args=(list(map(str, arguments)), environment, pause, double)
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


def check_losses(found, alone, truth, dtype=torch.float32):
    """Losses of the same steps, by folder: within the budget of one process, which also errs from float64."""
    ours, peer = (torch.tensor(losses(folder), dtype=dtype) for folder in (found, alone))
    check_budget(ours, torch.tensor(losses(truth), dtype=torch.float64), peer, factor=3)


@pytest.fixture(scope="module")
def alone(places, tmp_path_factory):
    """What one process makes, by dtype."""
    folders = {}
    for dtype in ("float32", "float16", "float64"):
        folders[dtype] = tmp_path_factory.mktemp(dtype)
        option, double = (dtype, False) if dtype != "float64" else ("float32", True)
        train(places, folders[dtype], "--steps", 6, "--lora-dropout", 0, "--dtype", option, double=double)
    return folders


@pytest.mark.parametrize(
    ("fsdp", "dtype"),
    [(False, "float32"), (True, "float32"), pytest.param(True, "float16", marks=pytest.mark.slow)],
)
def test_two_ranks_follow_one_with_the_same_global_batch(places, tmp_path, alone, fsdp, dtype):
    options = ["--steps", 6, "--lora-dropout", 0, "--dtype", dtype, *(["--fsdp"] if fsdp else [])]
    train(places, tmp_path, *options, ranks=2)
    check_losses(tmp_path, alone[dtype], alone["float64"], getattr(torch, dtype))
    found, peer, truth = (weights(folder) for folder in (tmp_path, alone[dtype], alone["float64"]))
    assert found.keys() == peer.keys() == truth.keys()
    assert error_ratio(*(torch.cat([each[name].flatten() for name in truth]) for each in (found, peer, truth))) <= 3


@pytest.mark.slow
def test_a_sharded_run_of_two_ranks_goes_on_with_one(places, tmp_path, alone):
    options = ["--lora-dropout", 0, "--steps", 6, "--save-every", 3, "--keep", 9]
    train(places, tmp_path, *options, "--fsdp", ranks=2)
    (tmp_path / "checkpoints" / "step-00000006" / "state.json").unlink()
    os.rename(tmp_path / "checkpoints" / "step-00000006", tmp_path / "lost")
    train(places, tmp_path, *options, "--resume")
    check_losses(tmp_path, alone["float32"], alone["float64"])
