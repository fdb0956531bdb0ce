"""The passes between the plan's products as ops of the package, which a GPU takes, here on a CPU."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from seed_fast import SeedTokenizer
from seed_fast.convert import from_official
from seed_fast.model import cpu_products, passes
from seed_fast.ops import _native, backend
from seed_fast.testing import check_budget, error_ratio
from tests.model.test_fast import FORMS, small

BACKENDS = ["reference"] if _native.cpu_unavailable() else ["reference", "cpu"]


@pytest.fixture
def fused(monkeypatch):
    monkeypatch.setenv("SEED_FAST_FUSED_PASSES", "1")


@pytest.fixture
def calls(monkeypatch):
    """How often the plan calls each op."""
    counted = {"add_layer_norm": 0, "bias_gelu": 0}

    def counting(name, op):
        def call(*arguments, **options):
            counted[name] += 1
            return op(*arguments, **options)

        return call

    monkeypatch.setattr(passes, "add_layer_norm", counting("add_layer_norm", passes.add_layer_norm))
    monkeypatch.setattr(cpu_products, "bias_gelu", counting("bias_gelu", cpu_products.bias_gelu))
    return counted


@pytest.mark.parametrize("cross_attention", FORMS)
@pytest.mark.parametrize("preset", ["seed-1", "seed-2", "seed-2-rqf", "seed-tiny"])
def test_float32_codes_are_those_of_the_plain_modules(fused, preset, cross_attention):
    tok = small(preset)
    plan = tok.fast(cross_attention=cross_attention)
    pixels = torch.randn(5, 3, tok.config.image_size, tok.config.image_size)
    with torch.no_grad():
        exact = copy.deepcopy(tok).double().image_features(pixels.double())
        assert error_ratio(plan.image_features(pixels), tok.image_features(pixels), exact) <= 2
    for images in (5, 1):
        assert torch.equal(plan.encode(pixels[:images]), tok.encode(pixels)[:images])


@pytest.mark.parametrize("name", ["seed2_tiny", "seed2_rqf_tiny", "seed1_tiny"])
def test_codes_equal_what_the_official_code_computed(fused, golden, name):
    official = golden(name)
    plan = from_official(official.weights, official.config).fast()
    assert torch.equal(plan.encode(official.inputs["image"]), official.outputs["codes"])


@pytest.mark.parametrize("cross_attention", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_float32_as_with_passes_of_torch(monkeypatch, dtype, cross_attention):
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    pixels = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    truth, found = tok.causal_embeddings(pixels).detach().double(), {}
    for choice in ("0", "1"):
        monkeypatch.setenv("SEED_FAST_FUSED_PASSES", choice)
        found[choice] = tok.fast(dtype=dtype, cross_attention=cross_attention).causal_embeddings(pixels)
    assert error_ratio(found["1"], found["0"], truth) < 1.25


def test_every_sum_norm_and_gelu_between_products_is_an_op(fused, calls):
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    config = tok.config
    tok.fast().encode(torch.zeros(1, 3, 64, 64))
    crosses = -(-config.qformer_depth // config.cross_attention_every)
    # Layer 0's self-attention, the same for every image, is not in a call.
    assert calls["add_layer_norm"] == 2 * config.vit_depth + 2 * config.qformer_depth - 1 + crosses
    assert calls["bias_gelu"] == config.vit_depth + config.qformer_depth


def test_a_cpu_keeps_the_passes_of_torch(calls):
    SeedTokenizer.from_pretrained("seed-tiny").fast().encode(torch.zeros(1, 3, 64, 64))
    assert calls == {"add_layer_norm": 0, "bias_gelu": 0}
    assert passes.fused_on(torch.device("cuda"))
    assert not passes.fused_on(torch.device("cpu"))


def test_a_wrong_choice_is_named(monkeypatch):
    monkeypatch.setenv("SEED_FAST_FUSED_PASSES", "yes")
    with pytest.raises(ValueError, match="SEED_FAST_FUSED_PASSES: expected auto, 1 or 0, got 'yes'"):
        SeedTokenizer.from_pretrained("seed-tiny").fast()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_forms_of_a_step_agree(monkeypatch, name, post_norm, dtype):
    module = torch.nn.LayerNorm(40, eps=1e-6)
    with torch.no_grad():
        module.weight.normal_()
        module.bias.normal_()
    x, delta = torch.randn(1, 5, 40), torch.randn(3, 5, 40).to(dtype)
    found = []
    for choice in ("0", "1"):
        monkeypatch.setenv("SEED_FAST_FUSED_PASSES", choice)
        step = passes.AddNorm(module, dtype, post_norm=post_norm)
        start = x.clone() if post_norm else x.repeat(3, 1, 1)
        with torch.no_grad(), backend(name):
            found.append(step.after(start, delta))
        if post_norm:
            assert torch.equal(start, x), "a stream of one row for all images is only read"
    norm = copy.deepcopy(module).double()((x + delta).double()).detach()
    truth = (norm if post_norm else (x + delta).double(), norm)
    for one, other, true, kept in zip(*found, truth, (torch.float32, dtype), strict=True):
        check_budget(other, true, one.to(kept))


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_with_gelu_is_the_same_with_its_bias_behind_it(monkeypatch, dtype, onednn):
    weight, bias, x = torch.randn(48, 40) / 6, torch.randn(48), torch.randn(3, 5, 40)
    found = []
    with torch.backends.mkldnn.flags(enabled=onednn), torch.no_grad():
        for choice in ("0", "1"):
            monkeypatch.setenv("SEED_FAST_FUSED_PASSES", choice)
            found.append(cpu_products.Linear(weight, bias, dtype, gelu=True)(x))
    weight, bias, x = (t.to(dtype) for t in (weight, bias, x))
    exact = F.gelu(F.linear(x.double(), weight.double(), bias.double()))
    check_budget(found[0], exact, F.gelu(F.linear(x, weight, bias)))
    check_budget(found[1], exact, F.gelu(F.linear(x, weight) + bias))  # the product is rounded on its own
