"""Stage 1 computes what the official code computed: the loss, what it is made of, and every gradient."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from seed_fast.convert import from_official_stage1, to_official_stage1
from seed_fast.convert.stage1 import stage1_names
from seed_fast.testing import check_budget, error_ratio
from tests.conftest import GOLDEN

BUDGET, GRADIENT_BUDGET = 2.0, 3.0
FILE = "seed2_stage1_tiny"


def run(golden, dtype):
    """Outputs and gradients, by official names, of one step without dropout."""
    file = golden(FILE)
    model = from_official_stage1(file.weights, file.config, dtype=dtype)
    ids, mask = file.inputs["input_ids"], file.inputs["attention_mask"]
    loss = model.loss(file.inputs["image"].to(dtype), ids, mask, label_smoothing=0.1)
    loss.backward()
    names = stage1_names(model)
    gradients = {names[name]: p.grad for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        queries = model.tokenizer.causal_embeddings(file.inputs["image"].to(dtype))
        texts = model.text(model.tokenizer.qformer, ids, mask)
    return {"loss_itc": loss.detach().reshape(1), "query_output": queries, "text_output": texts}, gradients


@pytest.fixture(scope="module")
def computed(golden):
    official = {}
    for key, value in load_file(GOLDEN / f"golden_{FILE}.safetensors").items():
        group, _, name = key.partition("/")
        official.setdefault(group, {})[name] = value
    ours, exact = run(golden, torch.float32), run(golden, torch.float64)
    return SimpleNamespace(official=official, ours=ours, exact=exact)


@pytest.mark.parametrize("name", ["query_output", "text_output"])
def test_outputs_are_within_the_float32_budget(computed, name):
    assert error_ratio(computed.ours[0][name], computed.official["out"][name], computed.exact[0][name]) <= BUDGET


def test_loss_equals_the_official_loss(computed):
    outputs = computed.ours[0], computed.exact[0], computed.official["out"]
    check_budget(*(each["loss_itc"].reshape(1) for each in outputs))


def test_gradients_are_within_the_float32_budget(computed):
    official = computed.official["grad"]
    assert len(official) > 30
    for name, value in official.items():
        exact = computed.exact[1][name]
        if name.endswith("self.key.bias"):  # zero in exact arithmetic: softmax ignores it, and only rounding is left
            assert exact.abs().max() < 1e-12
            assert computed.ours[1][name].abs().max() <= GRADIENT_BUDGET * value.abs().max()
        elif value.numel() == 1:
            check_budget(computed.ours[1][name].reshape(1), exact.reshape(1), value.reshape(1), GRADIENT_BUDGET)
        else:
            assert error_ratio(computed.ours[1][name], value, exact) <= GRADIENT_BUDGET, name


def test_the_same_parameters_get_gradients_and_of_the_same_norm(computed):
    official = computed.official["gradnorm"]
    assert computed.ours[1].keys() == official.keys()
    names = [name for name in official if not name.endswith("self.key.bias")]
    ours, exact = (torch.stack([each[1][name].norm() for name in names]) for each in (computed.ours, computed.exact))
    peer = torch.stack([official[name].reshape(()) for name in names])
    assert error_ratio(ours / exact, peer / exact, exact / exact) <= GRADIENT_BUDGET


def test_label_smoothing_spreads_the_target(golden):
    file = golden(FILE)
    model = from_official_stage1(file.weights, file.config, dtype=torch.float64)
    batch = file.inputs["image"].double(), file.inputs["input_ids"], file.inputs["attention_mask"]
    with torch.no_grad():
        image = model.image_embedding(model.tokenizer.causal_embeddings(batch[0]))
        logits = image @ model.text_embedding(*batch[1:]).T / model.temperature
        count = len(logits)
        for smoothing in (0.0, 0.1, 0.5):
            target = (1 - smoothing) * torch.eye(count, dtype=torch.float64) + smoothing / count
            expected = -sum((target * x.log_softmax(1)).sum(1).mean() for x in (logits, logits.T)) / 2
            torch.testing.assert_close(model.loss(*batch, label_smoothing=smoothing), expected)


def test_export_to_official_names_is_the_inverse(golden):
    file = golden(FILE)
    exported = to_official_stage1(from_official_stage1(file.weights, file.config))
    assert exported.keys() == file.weights.keys()
    assert all(torch.equal(exported[name], value) for name, value in file.weights.items())


def test_bad_checkpoints_and_batches_are_named(golden):
    file = golden(FILE)
    weights = {name: value for name, value in file.weights.items() if "layer.1.intermediate." not in name}
    with pytest.raises(ValueError, match=r"2 are missing: Qformer\.bert\.encoder\.layer\.1\.intermediate\.dense"):
        from_official_stage1(weights, file.config)
    with pytest.raises(ValueError, match=r"lacks vision_proj\.weight"):
        from_official_stage1(
            {name: value for name, value in weights.items() if name != "vision_proj.weight"}, file.config
        )
    model = from_official_stage1(file.weights, file.config)
    image, ids, mask = file.inputs["image"], file.inputs["input_ids"], file.inputs["attention_mask"]
    with pytest.raises(ValueError, match="as many as pictures, 5, got 4"):
        model.loss(image, ids[:4], mask[:4])
    with pytest.raises(ValueError, match=r"must both be \[B, T\], got \[5, 9\] and \[5, 8\]"):
        model.loss(image, ids, mask[:, :8])
    with pytest.raises(TypeError, match="input_ids must be int64"):
        model.loss(image, ids.float(), mask)
    with pytest.raises(ValueError, match="at most 512 tokens, got 513"):
        model.loss(image, ids[:, :1].expand(-1, 513), mask[:, :1].expand(-1, 513))
