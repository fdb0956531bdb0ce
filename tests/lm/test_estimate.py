"""What a run will need: counted parameters, memory that is near what is measured, and refusal before it starts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("peft")

from seed_fast.cli import app
from seed_fast.cli.train_lm import refusal
from seed_fast.distributed import trainable
from seed_fast.lm import estimate as module
from seed_fast.lm.estimate import count, estimate
from seed_fast.lm.model import Lora, build
from seed_fast.train.lm import LanguageModelTask
from tests.lm.tiny import CODEBOOK, base, config, store, tokenizer


def judge(family="opt", **changes):
    given = {"text_tokens": len(tokenizer(family)), "codebook_size": CODEBOOK, "lora": Lora(), "dtype": torch.float32,
             "tokens": 64, "device": torch.device("cpu"), **changes}  # fmt: skip
    return estimate(config(family), **given)


@pytest.mark.parametrize("family", ["opt", "llama"])
@pytest.mark.parametrize("full", [False, True], ids=["adapter", "full"])
def test_parameters_are_those_of_the_model(tmp_path, family, full):
    model = build(base(tmp_path / "base", family), codebook_size=CODEBOOK, full=full).model
    total, learned, products, learned_products = count(
        config(family), text_tokens=len(tokenizer(family)), codebook_size=CODEBOOK, lora=None if full else Lora()
    )
    assert total == sum(p.numel() for p in model.parameters())
    assert learned == sum(p.numel() for _, p in trainable(model))
    assert learned_products <= products < total
    assert learned_products <= learned


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_activations_are_near_those_that_a_step_keeps(tmp_path, family):
    """Storages that autograd holds per token and block, measured as the difference of one block more."""
    kept = {}
    for layers in (1, 2):
        folder = base(tmp_path / f"{family}{layers}", family, num_hidden_layers=layers)
        task = LanguageModelTask(build(folder, codebook_size=CODEBOOK))
        own = {p.untyped_storage().data_ptr() for p in task.parameters()}
        own |= {buffer.untyped_storage().data_ptr() for buffer in task.buffers()}
        held: dict[int, int] = {}

        def pack(x, own=own, held=held):
            if x.untyped_storage().data_ptr() not in own:
                held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        ids = torch.randint(4, 16, (4, 32))
        batch = {"ids": ids, "labels": ids, "positions": torch.arange(32).expand(4, 32),
                 "segments": torch.ones_like(ids)}  # fmt: skip
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            assert task(batch)["loss"].requires_grad
        kept[layers] = sum(held.values())
    measured = (kept[2] - kept[1]) / ids.numel()
    expected = module.activations_per_token(config(family), 4, Lora())
    assert 0.75 < expected / measured < 1.35


def test_memory_follows_what_is_chosen(monkeypatch):
    plain = judge()
    assert plain.weights == 4 * plain.parameters
    assert (plain.gradients, plain.optimizer) == (4 * plain.trainable, 8 * plain.trainable)
    half = judge(dtype=torch.float16)
    assert half.weights == 2 * (plain.parameters - plain.trainable) + 4 * plain.trainable
    shared = judge(fsdp=True, world=2)
    assert shared.weights == plain.weights // 2
    kept = judge(checkpointed=True, tokens=6400)
    assert kept.total < judge(tokens=6400).total
    assert kept.flops_per_token > plain.flops_per_token
    assert judge(lora=None).trainable == judge(lora=None).parameters


def test_speed_is_the_measured_rate_over_the_work(monkeypatch):
    monkeypatch.setattr(module, "matrix_rate", lambda *_: 1e9)
    found = judge()
    products = count(config(), text_tokens=len(tokenizer()), codebook_size=CODEBOOK, lora=Lora())
    assert found.flops_per_token == 4 * products[2] + 2 * products[3]
    assert found.tokens_per_s == pytest.approx(module.REACHED * 1e9 / found.flops_per_token)
    assert judge(world=3).tokens_per_s == pytest.approx(3 * found.tokens_per_s)


def test_what_does_not_fit_is_refused_in_one_line():
    found = judge()
    assert found.fits
    assert refusal(found) is None
    problem = refusal(replace(found, available=1000))
    assert "\n" not in problem
    assert "--checkpoint-activations" in problem
    assert "--checkpoint-activations" not in refusal(replace(found, available=1000, checkpointed=True))


@pytest.fixture
def arguments(tmp_path):
    return [
        "train",
        "lm",
        "--data",
        str(store(tmp_path / "store")),
        "--model",
        str(base(tmp_path / "base")),
        "-o",
        str(tmp_path / "out"),
        "--length",
        "64",
        "--batch-size",
        "4",
        "--accumulate",
        "1",
        "--device",
        "cpu",
    ]


def test_the_command_estimates_and_does_not_train(arguments, tmp_path):
    done = CliRunner().invoke(app, [*arguments, "--estimate", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["fits"]
    assert found["total"] == sum(found[name] for name in ("weights", "gradients", "optimizer", "activations", "logits"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("only", [["--estimate"], []])
def test_the_command_fails_early_where_it_will_not_fit(arguments, tmp_path, monkeypatch, only):
    monkeypatch.setattr(module, "available_bytes", lambda device: 1000)
    done = CliRunner().invoke(app, [*arguments, *only])
    assert done.exit_code == 1
    assert "and there are 0.0 MiB: try" in done.output.splitlines()[-1]
    assert not (tmp_path / "out").exists()
