"""Stage 2 computes what the official code computed: the three losses, every gradient, and one step of AdamW."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.convert import from_official
from seed_fast.convert.names import official_names
from seed_fast.testing import error_ratio
from seed_fast.train.optimizer import adamw
from seed_fast.train.stage2 import IMAGE_WEIGHT, RECON_WEIGHT, VQ_WEIGHT, Stage2, losses
from tests.conftest import GOLDEN

BUDGET, GRADIENT_BUDGET = 2.0, 3.0
FILE = "seed2_train_tiny"
TERMS = {
    "loss_embed": ("vq", VQ_WEIGHT),
    "loss_recon_s": ("recon", RECON_WEIGHT),
    "loss_distil_image": ("image", IMAGE_WEIGHT),
}


def run(golden, dtype):
    """Losses, gradients, and parameters after one step, by official names."""
    file = golden(FILE)
    tok = from_official(file.weights, file.config, dtype=dtype)
    terms = losses(tok, file.inputs["image"].to(dtype), file.inputs["clip_target"].to(dtype))
    terms["loss"].backward()
    names = official_names(file.config)
    gradients = {names[name]: p.grad.clone() for name, p in tok.named_parameters() if p.grad is not None}
    adamw(tok, weight_decay=0.05, lr=1e-4).step()
    after = {names[name]: p.detach() for name, p in tok.named_parameters()}
    return {name: value.detach() for name, value in terms.items()}, gradients, after


@pytest.fixture(scope="module")
def computed(golden):
    official = {}
    for key, value in load_file(GOLDEN / f"golden_{FILE}.safetensors").items():
        group, _, name = key.partition("/")
        official.setdefault(group, {})[name] = value
    return SimpleNamespace(official=official, ours=run(golden, torch.float32), exact=run(golden, torch.float64))


@pytest.mark.parametrize("name", ["loss", *TERMS])
def test_losses_equal_the_official_ones(computed, name):
    ours_name, weight = TERMS.get(name, ("loss", 1.0))
    ours, exact = (weight * each[0][ours_name].item() for each in (computed.ours, computed.exact))
    official = computed.official["out"][name].item()
    # One number can be exact by chance: the budget is how far the official gradients are from float64, relatively.
    grads = computed.official["grad"]
    peer, truth = (torch.cat([each[n].double().flatten() for n in grads]) for each in (grads, computed.exact[1]))
    allowed = exact * ((peer - truth).norm() / truth.norm()).item()
    assert max(abs(ours - exact), abs(official - exact)) <= allowed


def test_gradients_are_within_the_float32_budget(computed):
    official = computed.official["grad"]
    assert len(official) > 30
    for name, value in official.items():
        assert error_ratio(computed.ours[1][name], value, computed.exact[1][name]) <= GRADIENT_BUDGET, name


def test_the_same_parameters_get_gradients_and_of_the_same_norm(computed):
    official = computed.official["gradnorm"]
    assert computed.ours[1].keys() == official.keys()
    ours, exact = (torch.stack([each[1][name].norm() for name in official]) for each in (computed.ours, computed.exact))
    peer = torch.stack([norm.reshape(()) for norm in official.values()])
    assert error_ratio(ours / exact, peer / exact, exact / exact) <= GRADIENT_BUDGET


def test_a_step_of_adamw_leads_to_the_official_parameters(computed):
    for name, value in computed.official["after"].items():
        moved = value - computed.official["w"][name]
        assert moved.abs().max() > 0
        assert error_ratio(computed.ours[2][name], value, computed.exact[2][name]) <= GRADIENT_BUDGET, name


@pytest.mark.parametrize("preset", ["seed-1", "seed-2-rqf"])
def test_other_heads_train(golden, preset):
    base = golden(FILE).config.to_dict()
    preset = SeedConfig.preset(preset)
    sizes = {"head": preset.head, "generation_tokens": preset.generation_tokens, "reverse_depth": 2}
    torch.manual_seed(0)
    tok = SeedTokenizer(SeedConfig.from_dict({**base, **sizes}))
    shape = [3, preset.generation_tokens, 24] if preset.generates_text else [3, 24]
    pixels = torch.randn(3, 3, 56, 56)
    terms = losses(tok, pixels, torch.randn(shape))
    terms["loss"].backward()
    total = VQ_WEIGHT * terms["vq"] + RECON_WEIGHT * terms["recon"] + IMAGE_WEIGHT * terms["image"]
    assert torch.equal(terms["loss"], total)
    assert (terms["recon"] == 0) == preset.generates_text
    assert all(p.grad is not None for p in tok.head.parameters())
    assert tok.qformer.query_tokens.grad is None


def test_a_target_of_another_shape_is_refused(golden):
    file = golden(FILE)
    tok = from_official(file.weights, file.config)
    with pytest.raises(ValueError, match=r"target must be \[4, 24\], as the head makes, got \[4, 1\]"):
        losses(tok, file.inputs["image"], torch.zeros(4, 1))


def test_frozen_parts_run_without_dropout_unless_the_official_quirk_is_asked_for(golden):
    file = golden(FILE)
    batch = {"pixels": file.inputs["image"]}

    def twice(**options):
        tok = from_official(file.weights, file.config)
        stage = Stage2(tok, lambda batch: file.inputs["clip_target"], **options)
        return [stage(batch)["loss"].item() for _ in range(2)]

    quiet, noisy = twice(dropout=0.1), twice(dropout=0.1, official_dropout=True)
    assert quiet[0] == quiet[1] == losses(
        from_official(file.weights, file.config), file.inputs["image"], file.inputs["clip_target"]
    )["loss"].item()  # fmt: skip
    assert noisy[0] != noisy[1]
    with pytest.raises(ValueError, match="official_dropout needs fresh causal embeddings"):
        twice(official_dropout=True, causal=lambda batch: None)


def test_health_counts_used_and_dead_codes(golden):
    from seed_fast.train.health import DEAD_AFTER, CodebookHealth

    health = CodebookHealth(8)
    health.update(torch.tensor([[0, 1], [2, 3]]))
    assert health.metrics() == pytest.approx({"usage": 0.5, "dead": 4, "perplexity": 4})
    for _ in range(DEAD_AFTER):
        health.update(torch.tensor([[7]]))
    metrics = health.metrics()
    assert (metrics["usage"], metrics["dead"]) == (1 / 8, 7)
    assert 1 < metrics["perplexity"] < 4
