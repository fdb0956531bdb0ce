"""The training benchmark: its baseline is the official computation, and what computes something else is not timed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.catalog import GROUPS
from benchmarks.e2e import official_training as official
from benchmarks.e2e.train_tokenizer import BUDGET, OFFICIAL, OFFICIAL_CACHED, OURS, OURS_CACHED
from benchmarks.providers import Case
from seed_fast.convert import from_official, from_official_stage1
from seed_fast.testing import error_ratio
from tests.conftest import GOLDEN

TRAINING = GROUPS["train_tokenizer"]
STAGES = sorted(TRAINING)


def golden_output(name):
    return load_file(GOLDEN / f"golden_{name}.safetensors")


def stage_1_step(file, dtype):
    """(loss, gradient of the queries) by the official formulas."""
    model = from_official_stage1(file.weights, file.config, dtype=dtype)
    features = official.vit_features(model.tokenizer.vit, file.inputs["image"].to(dtype))
    loss = official.stage1_loss(model, features, file.inputs["input_ids"], file.inputs["attention_mask"])
    loss.backward()
    return loss.detach(), model.tokenizer.qformer.query_tokens.grad


def stage_2_step(file, dtype):
    """(loss, gradient of the codebook) by the official formulas."""
    tok = from_official(file.weights, file.config, dtype=dtype)
    with torch.no_grad():
        causal = official.causal_embeddings(tok, file.inputs["image"].to(dtype))
    loss = official.stage2_loss(tok, causal, file.inputs["clip_target"].to(dtype))
    loss.backward()
    return loss.detach(), tok.quantizer.codebook.grad


def check_step(step, file, recorded_loss, recorded_gradient):
    """The recorded step is float32 too: what it is off by, from float64, is the budget."""
    (loss, gradient), (true_loss, true_gradient) = (step(file, dtype) for dtype in (torch.float32, torch.float64))
    allowed = max(BUDGET * abs(recorded_loss - true_loss), 2 * torch.finfo(torch.float32).eps * true_loss)
    assert abs(loss - true_loss) <= allowed
    assert error_ratio(gradient, recorded_gradient, true_gradient) <= BUDGET
    error = (gradient - true_gradient).norm() / true_gradient.norm()
    assert error < 1e-4, "float32 resolves the gradient, or the budget says nothing"


def test_the_official_stage_1_step_has_the_official_loss_and_gradients(golden):
    name = "seed2_stage1_tiny"
    recorded = golden_output(name)
    check_step(stage_1_step, golden(name), recorded["out/loss_itc"].double(), recorded["grad/query_tokens"])


def test_the_official_stage_2_step_has_the_official_loss_and_gradients(golden):
    name = "seed2_train_tiny"
    recorded = golden_output(name)
    check_step(stage_2_step, golden(name), recorded["out/loss"].double(), recorded["grad/quantize.embedding.weight"])


@pytest.fixture(params=STAGES)
def part(request):
    """(benchmark, a small case, inputs, truth)."""
    benchmark = TRAINING[request.param]
    case = dataclasses.replace(benchmark.case("seed-tiny, B=64"), name="seed-tiny, B=8", shape={"images": 8})
    inputs = benchmark.inputs(case, "cpu", 0)
    return benchmark, case, inputs, benchmark.truth(inputs, case)


def test_every_provider_computes_the_same_step_twice(part):
    benchmark, case, inputs, truth = part
    for provider in benchmark.providers:
        call = provider.start(inputs, case, "cpu")
        output = call()
        assert benchmark.check(case, provider, output, inputs, truth) == ("", "")
        assert call() is None  # the steps that are timed
        output.loss *= 1.001
        assert "the loss is off by" in benchmark.check(case, provider, output, inputs, truth)[0]
        output.loss = truth[0].loss
        name = next(iter(output.gradients))
        output.gradients[name] = output.gradients[name] * 1.1
        assert f"the gradient of {name} is off by" in benchmark.check(case, provider, output, inputs, truth)[0]
        if hasattr(call, "close"):
            call.close()


def test_steps_leave_the_weights_as_they_were(part):
    from benchmarks.e2e.train_tokenizer import training

    benchmark, case, inputs, _ = part
    module = training(case, inputs).module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for name in (OURS_CACHED, OFFICIAL_CACHED):
        call = benchmark.provider(name).start(inputs, case, "cpu")
        call()
        call()
        if hasattr(call, "close"):
            call.close()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("stage", STAGES)
def test_bars_name_cases_and_providers_that_exist(stage):
    benchmark = TRAINING[stage]
    targets = {}
    for bar in benchmark.bars:
        assert bar.device in benchmark.case(bar.case).devices
        assert all(benchmark.provider(name) for name in (bar.fast, *bar.slow))
        targets[bar.case, bar.fast, bar.slow] = bar.target
    assert targets["seed-2, B=4", OURS_CACHED, (OFFICIAL,)] == 1.5
    assert {provider.name for provider in benchmark.providers} == {OURS, OURS_CACHED, OFFICIAL, OFFICIAL_CACHED}


@pytest.mark.parametrize("stage", STAGES)
def test_work_grows_with_the_batch_and_weights_do_not(stage):
    benchmark = TRAINING[stage]
    one, two = (Case("", {"images": images}, options={"stage": stage, "preset": "seed-tiny"}) for images in (8, 16))
    assert 1.9 < benchmark.flops(two) / benchmark.flops(one) < 2.01  # the logits' matrix is B x B
    assert benchmark.bytes(two) == benchmark.bytes(one) > 0
