"""The loop: what it logs, its precisions, accumulation, clipping, averages, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from seed_fast._files import OutputError
from seed_fast.testing import check_budget
from seed_fast.train.checkpoint import latest, read_tensors
from tests.train.tiny import RECIPE, ListBatches, loop, stage1, stage2


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return [line["loss"] for line in metrics(folder) if "loss" in line]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("make", [stage1, stage2])
def test_training_lowers_the_loss_and_logs_every_step(tmp_path, make):
    assert loop(make(), tmp_path, recipe=replace(RECIPE, epochs=10, lr=3e-3))()
    found = losses(tmp_path)
    assert len(found) == 40
    assert sum(found[-4:]) < sum(found[:4])
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert lines[0]["lr"] == RECIPE.warmup_lr
    assert lines[-1]["images_per_s"] > 0
    if make is stage2:
        assert 0 < lines[-1]["usage"] <= 1
        assert lines[-1]["dead"] == 32 - 32 * lines[-1]["usage"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("make", [stage1, stage2])
def test_half_precision_follows_float32(tmp_path, make, dtype):
    recipe = replace(RECIPE, epochs=2)
    for name in ("float32", dtype):
        loop(make(), tmp_path / name, recipe=replace(recipe, dtype=name))()
    found, truth = (torch.tensor(losses(tmp_path / name)) for name in (dtype, "float32"))
    half = getattr(torch, dtype)  # two units in the last place of half precision
    check_budget(found.to(half), truth.double(), truth.to(half))
    saved = read_tensors(latest(tmp_path / dtype / "checkpoints"), "model")
    assert {value.dtype for name, value in saved.items() if not name.startswith("health")} == {torch.float32}
    if dtype == "float16":
        assert metrics(tmp_path / dtype)[-1]["loss_scale"] == 65536.0


def test_a_float16_overflow_skips_the_step_and_halves_the_scale(tmp_path):
    task = stage2()
    run = loop(task, tmp_path, recipe=replace(RECIPE, epochs=1, dtype="float16"))
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 2.0**120})
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    run()
    assert run.scaler.get_scale() == 2.0**116
    assert all(torch.equal(before[name], p) for name, p in task.named_parameters())


def test_accumulated_micro_batches_equal_one_batch(tmp_path):
    """Stage 2's losses are means over samples; contrast alone depends on who shares a micro-batch. In float64."""
    loop(stage2().double(), tmp_path / "one")()
    loop(stage2().double(), tmp_path / "two", recipe=replace(RECIPE, accumulate=2))()
    one, two = (torch.tensor(losses(tmp_path / name), dtype=torch.float64) for name in ("one", "two"))
    assert ((two - one).abs() <= torch.finfo(torch.float32).eps * one).all()


def test_clipping_bounds_the_gradient_and_reports_its_norm(tmp_path):
    loop(stage2(), tmp_path / "free", recipe=replace(RECIPE, clip=1e9, epochs=1))()
    loop(stage2(), tmp_path / "tight", recipe=replace(RECIPE, clip=1e-12, epochs=1, weight_decay=0.0, eps=1.0))()
    free, tight = losses(tmp_path / "free"), losses(tmp_path / "tight")
    assert metrics(tmp_path / "free")[0]["gradient_norm"] == metrics(tmp_path / "tight")[0]["gradient_norm"] > 0
    assert tight[1:] != free[1:]


def test_the_moving_average_is_validated_and_kept_beside_the_weights(tmp_path):
    run = loop(stage1(), tmp_path, recipe=replace(RECIPE, ema=0.5), validation=ListBatches(8), validate_every=10)
    name, p = next((name, p) for name, p in run.task.named_parameters() if name.endswith("text_proj.weight"))
    expected, steps = p.detach().clone(), []
    run.optimizer.register_step_post_hook(lambda *_: steps.append(p.detach().clone()))
    run()
    for value in steps:
        expected.lerp_(value, 0.5)
    path = latest(tmp_path / "checkpoints")
    assert torch.equal(read_tensors(path, "average")[name], expected)
    assert torch.equal(read_tensors(path, "model")[name], p)
    assert [line["step"] for line in metrics(tmp_path) if "validation_loss" in line] == [10, 20]


def test_validation_judges_the_whole_epoch_both_ways(tmp_path):
    loop(stage1(), tmp_path, recipe=replace(RECIPE, epochs=1), validation=ListBatches(8))()
    line = metrics(tmp_path)[-1]
    assert {"validation_loss", "validation_text_r1", "validation_image_r1"} <= line.keys()
    assert 0 <= line["validation_text_r1"] <= 1


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loop(stage2(), tmp_path, recipe=replace(RECIPE, epochs=1), tensorboard=True)()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.value for e in events.Scalars("loss")] == torch.tensor(losses(tmp_path), dtype=torch.float32).tolist()


def test_a_lost_loss_ends_the_run_before_a_checkpoint_keeps_it(tmp_path):
    run = loop(stage2(), tmp_path, save_every=1)
    run.batches.pixels[:] = float("inf")
    with pytest.raises((FloatingPointError, ValueError), match="finite"):
        run()
    assert latest(tmp_path / "checkpoints") is None


def test_bad_recipes_are_refused():
    for change, message in (
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"clip": -1.0}, r"clip must be above 0, got -1\.0"),
        ({"cosine": "year"}, "per must be epoch or step, got 'year'"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"min_lr": 1.0}, r"floor must be in 0\.\.peak, got 1\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(RECIPE, **change)
    with pytest.raises(ValueError, match=r"multiple of ranks \* accumulate, 3 \* 1, got 8"):
        RECIPE.micro_batch(3)


def test_data_without_a_batch_is_named(tmp_path):
    run = loop(stage2(), tmp_path)
    run.batches.pixels = run.batches.pixels[:3]
    with pytest.raises(ValueError, match="at least one batch"):
        run()


def test_a_run_does_not_go_on_by_accident(tmp_path):
    loop(stage2(), tmp_path, recipe=replace(RECIPE, epochs=1))()
    with pytest.raises(OutputError, match="resume=True goes on with it"):
        loop(stage2(), tmp_path)
    with pytest.raises(ValueError, match="epochs must stay 1, as the run began with, got 5"):
        loop(stage2(), tmp_path, resume=True)
