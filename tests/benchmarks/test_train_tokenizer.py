"""The training benchmark: its baseline is the official computation, and what computes something else is not timed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.e2e import TRAINING
from benchmarks.e2e import official_training as official
from benchmarks.e2e.train_tokenizer import OFFICIAL, OFFICIAL_CACHED, OURS, OURS_CACHED
from benchmarks.providers import Case
from seed_fast.convert import from_official, from_official_stage1
from tests.conftest import GOLDEN

STAGES = sorted(TRAINING)


def golden_output(name):
    return load_file(GOLDEN / f"golden_{name}.safetensors")


def test_the_official_stage_1_step_has_the_official_loss_and_gradients(golden):
    name = "seed2_stage1_tiny"
    file, recorded = golden(name), golden_output(name)
    model = from_official_stage1(file.weights, file.config)
    features = official.vit_features(model.tokenizer.vit, file.inputs["image"])
    loss = official.stage1_loss(model, features, file.inputs["input_ids"], file.inputs["attention_mask"])
    loss.backward()
    assert loss.item() == pytest.approx(recorded["out/loss_itc"].item(), rel=1e-6)
    torch.testing.assert_close(model.tokenizer.qformer.query_tokens.grad, recorded["grad/query_tokens"],
                               rtol=1e-3, atol=1e-7)  # fmt: skip


def test_the_official_stage_2_step_has_the_official_loss_and_gradients(golden):
    name = "seed2_train_tiny"
    file, recorded = golden(name), golden_output(name)
    tok = from_official(file.weights, file.config)
    with torch.no_grad():
        causal = official.causal_embeddings(tok, file.inputs["image"])
    loss = official.stage2_loss(tok, causal, file.inputs["clip_target"])
    loss.backward()
    assert loss.item() == pytest.approx(recorded["out/loss"].item(), rel=1e-6)
    torch.testing.assert_close(tok.quantizer.codebook.grad, recorded["grad/quantize.embedding.weight"],
                               rtol=1e-3, atol=1e-7)  # fmt: skip


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
