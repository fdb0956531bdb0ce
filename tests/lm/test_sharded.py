"""`train lm --full --fsdp`: no rank holds model, gradients or moments whole, and nothing is lost by that."""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

pytest.importorskip("peft")

from seed_fast.distributed import Ranks, wrap
from seed_fast.lm.model import build, build_empty
from seed_fast.lm.streaming import stream_model
from seed_fast.testing import error_ratio
from seed_fast.train import sharded
from seed_fast.train.lm import LanguageModelTask
from seed_fast.train.optimizer import adamw, begin_states
from tests.lm import tiny
from tests.lm.test_resume import check_losses, losses, places, start, train  # noqa: F401  (the fixture)

if not sharded.can_write_parts():
    pytest.skip("sharded checkpoints need torch >= 2.9", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
FULL = ["--full", "--steps", 6, "--save-every", 3, "--keep", 9]


def whole(folder):
    files = sorted(folder.glob("model*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def test_two_ranks_leave_what_one_leaves_and_go_on_with_one(places, tmp_path):  # noqa: F811
    train(places, tmp_path / "alone", *FULL)
    train(places, tmp_path / "exact", *FULL, double=True)
    train(places, tmp_path / "sharded", *FULL, "--fsdp", ranks=2)
    check_losses(tmp_path / "sharded", tmp_path / "alone", tmp_path / "exact")
    one, two, true = (whole(tmp_path / name) for name in ("alone", "sharded", "exact"))
    assert one.keys() == two.keys()
    assert {name: value.dtype for name, value in one.items()} == {name: value.dtype for name, value in two.items()}
    assert error_ratio(*(torch.cat([each[name].double().flatten() for name in true]) for each in (two, one, true))) <= 3
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("alone", "sharded")]
    assert configs[0] == configs[1]
    assert {path.name for path in (tmp_path / "alone").iterdir()} == {
        path.name for path in (tmp_path / "sharded").iterdir()
    }

    # A checkpoint of two ranks holds no pickle, and one rank goes on with it.
    checkpoints = tmp_path / "sharded" / "checkpoints"
    kinds = {path.suffix for path in (checkpoints / "step-00000003").rglob("*") if path.is_file()}
    assert kinds == {".safetensors", ".json"}
    (checkpoints / "step-00000006").rename(tmp_path / "lost")
    train(places, tmp_path / "sharded", *FULL, "--resume")
    check_losses(tmp_path / "sharded", tmp_path / "alone", tmp_path / "exact")


def test_plain_transformers_reads_it(places, tmp_path, monkeypatch):  # noqa: F811
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(stream_model, "__defaults__", (20_000,))  # several files
    train(places, tmp_path, "--full", "--steps", 1, "--fsdp", ranks=2)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    plain, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert plain.lm_head.weight is plain.get_input_embeddings().weight
    stored = whole(tmp_path)
    assert all(torch.equal(p, stored[name]) for name, p in plain.named_parameters())


def test_a_run_killed_while_it_saves_goes_on(places, tmp_path):  # noqa: F811
    options = ["--full", "--steps", 8, "--save-every", 1, "--fsdp", "--keep", 2]
    train(places, tmp_path / "whole", *options, ranks=2)
    log = tmp_path / "killed" / "metrics.jsonl"
    processes = start(places, tmp_path / "killed", *options, "--resume", ranks=2, pause=0.05)
    while all(process.is_alive() for process in processes) and not (log.exists() and log.read_bytes().count(b"\n") > 3):
        time.sleep(0.01)
    for process in processes:
        process.kill()
        process.join()
    train(places, tmp_path / "killed", *options, "--resume", ranks=2)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    one, two = whole(tmp_path / "whole"), whole(tmp_path / "killed")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))


class Memory:
    """The largest resident memory of this process since it was made, beyond what there was then, in bytes."""

    def __init__(self) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._before = self._field("VmRSS")

    @staticmethod
    def _field(name: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    def peak(self) -> int:
        return self._field("VmHWM") - self._before


def measure(rank: int, port: int, folder: Path, results) -> None:
    """Peaks of one of two ranks while it gets its part, writes a checkpoint, reads it, and writes the model."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                   "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks = Ranks(rank, 2, torch.device("cpu"))
    found = {}
    for module in ("fsdp", "tensor", "checkpoint.state_dict", "checkpoint.hf_storage"):  # they take memory, too
        importlib.import_module(f"torch.distributed.{module}")

    memory = Memory()
    language = build_empty(folder / "base", codebook_size=tiny.CODEBOOK)
    sources = [build(folder / "base", codebook_size=tiny.CODEBOOK, full=True).model if rank == 0 else None]
    task = LanguageModelTask(language)
    wrap(task, ranks, fsdp=True, units=task.blocks)
    sharded.fill(task, language.model, sources.pop(), ranks.device)
    found["load"] = memory.peak()

    optimizer = adamw(task, 0.0, lr=1e-3)
    begin_states(optimizer)
    parts = {f"model/{name}": p.detach() for name, p in task.named_parameters()}
    for name, p in task.named_parameters():
        parts |= {f"optimizer.{key}/{name}": value for key, value in optimizer.state[p].items()}
    for value in parts.values():
        value.add_(0)  # zeros have no memory until they are written to
    memory = Memory()
    sharded.write_parts(folder / "checkpoint", parts)
    found["checkpoint"] = memory.peak()

    memory = Memory()
    sharded.read_parts(folder / "checkpoint", parts)
    found["resume"] = memory.peak()

    memory = Memory()
    stream_model(folder if rank == 0 else None, language.model)
    found["save"] = memory.peak()
    results.put((rank, found))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured by Linux")
def test_no_rank_holds_the_model_whole_but_the_first_while_it_hands_it_out(tmp_path):
    size = {"hidden_size": 768, "word_embed_proj_dim": 768, "ffn_dim": 3072, "num_hidden_layers": 9}
    base = tiny.base(tmp_path / "base", **size)
    whole_bytes = (base / "model.safetensors").stat().st_size
    assert whole_bytes > 150e6
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=measure, args=(rank, port, tmp_path, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=300) for _ in processes)
    for process in processes:
        process.join(60)
    share = {rank: {name: value / whole_bytes for name, value in each.items()} for rank, each in found.items()}
    # A part is half of the model. Margins are for the largest parameters and what libraries take.
    assert share[0]["load"] < 1.5 + 0.4, share  # the whole and its part
    assert share[1]["load"] < 0.5 + 0.4, share
    for each in share.values():
        assert each["checkpoint"] < 2 * 0.5 + 0.3, share  # a part of one of three groups, and its bytes
        assert each["resume"] < 0.5 + 0.3, share
        assert each["save"] < 0.4, share
