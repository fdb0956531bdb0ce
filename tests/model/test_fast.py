"""The inference plan against the plain modules: the same codes, embeddings within the float32 budget."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch

from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.convert import from_official
from seed_fast.model import fast_attention, fast_form
from seed_fast.ops import backend
from seed_fast.profile.cost import costs
from seed_fast.testing import error_ratio

SMALL = {"image_size": 28, "vit_dim": 32, "vit_depth": 2, "vit_heads": 2, "vit_ffn_dim": 48, "codebook_size": 300}
FORMS = ["absorbed", "projected"]


def small(preset: str) -> SeedTokenizer:
    torch.manual_seed(0)
    sizes = {
        **SMALL,
        "qformer_dim": 48,
        "qformer_depth": 3,
        "qformer_heads": 3,
        "qformer_ffn_dim": 64,
        "decoder_heads": 3,
    }
    if preset == "seed-tiny":
        return SeedTokenizer.from_pretrained("seed-tiny")
    return SeedTokenizer(dataclasses.replace(SeedConfig.preset(preset), **sizes))


@pytest.mark.parametrize("cross_attention", FORMS)
@pytest.mark.parametrize("preset", ["seed-1", "seed-2", "seed-2-rqf", "seed-tiny"])
def test_float32_codes_are_those_of_the_plain_modules(preset, cross_attention):
    tok = small(preset)
    plan = tok.fast(cross_attention=cross_attention)
    pixels = torch.randn(5, 3, tok.config.image_size, tok.config.image_size)
    exact = copy.deepcopy(tok).double()
    with torch.no_grad():
        features, plain = plan.image_features(pixels), tok.image_features(pixels)
        assert error_ratio(features, plain, exact.image_features(pixels.double())) <= 2
        embeddings = plan.query_embeddings(plain), tok.query_embeddings(plain)
        assert error_ratio(*embeddings, exact.query_embeddings(plain.double())) <= 2
    assert torch.equal(plan.encode(pixels), tok.encode(pixels))
    assert torch.equal(plan.encode(pixels[:1]), tok.encode(pixels)[:1])


@pytest.mark.parametrize("cross_attention", FORMS)
@pytest.mark.parametrize("name", ["seed2_tiny", "seed2_rqf_tiny", "seed1_tiny"])
def test_codes_equal_what_the_official_code_computed(golden, name, cross_attention):
    official = golden(name)
    plan = from_official(official.weights, official.config).fast(cross_attention=cross_attention)
    assert torch.equal(plan.encode(official.inputs["image"]), official.outputs["codes"])


@pytest.mark.parametrize("cross_attention", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_nearer_to_float32_than_half_precision_modules(dtype, cross_attention):
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    half = SeedTokenizer.from_pretrained("seed-tiny", dtype=dtype)
    pixels = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        truth = tok.causal_embeddings(pixels)
        ours = tok.fast(dtype=dtype, cross_attention=cross_attention).causal_embeddings(pixels)
        plain = half.causal_embeddings(pixels).float()
    assert (ours - truth).norm() < (plain - truth).norm()


def test_a_plan_leaves_the_tokenizer_alone_and_repeats_itself():
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    pixels = torch.randn(2, 3, 64, 64)
    before = {name: value.clone() for name, value in tok.state_dict().items()}
    plan = tok.fast()
    codes = plan.encode(pixels)
    assert torch.equal(plan.encode(pixels), codes), "a second call gives the same"
    assert all(torch.equal(before[name], value) for name, value in tok.state_dict().items())


@pytest.mark.parametrize(("sizes", "form"), [({}, "absorbed"), ({"qformer_heads": 96}, "projected")])
def test_the_form_with_fewer_operations_is_taken(sizes, form):
    config = dataclasses.replace(SeedConfig.preset("seed-2"), vit_depth=1, decoder_depth=1, **sizes)
    found = {plan: costs(config, 8, plan=plan)["Q-Former/cross-attention"].flops for plan in FORMS}
    assert min(found, key=found.__getitem__) == form
    module = SeedTokenizer(config, device="meta").qformer
    assert fast_form._fewer_operations(module, config.num_tokens) == form


@pytest.mark.parametrize(
    ("one", "several", "form"),
    [
        ({"by image": 1, "projected": 0.9}, {"by image": 1, "projected": 1.0}, "absorbed"),
        ({"by image": 1, "projected": 1.02}, {"by image": 1, "projected": 1.02}, "absorbed"),  # noise
        ({"by image": 1, "projected": 1.2}, {"by image": 1, "projected": 1.1}, "projected"),
        ({"by image": 1.3, "projected": 1.2}, {"by image": 1.3, "projected": 1.1}, "absorbed"),
    ],
)
def test_float32_takes_the_form_that_was_measured_to_be_faster_and_half_precision_does_not(
    one, several, form, monkeypatch
):
    monkeypatch.delenv("SEED_FAST_PRODUCTS", raising=False)
    monkeypatch.setattr(fast_form, "_gains", lambda *of: {"one": one, "several": several})
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    assert tok.fast().qformer.absorbed == (form == "absorbed")
    assert tok.fast(dtype=torch.bfloat16, cross_attention="measured").qformer.absorbed == (form == "absorbed")
    assert tok.fast(dtype=torch.bfloat16).qformer.absorbed


@pytest.mark.parametrize("by_torch", [(False, True), (True, False)])
def test_self_attention_by_torch_gives_the_same_codes(by_torch, monkeypatch):
    gains = dict(
        zip(("one", "several"), (1.5 if torch_is_faster else 0.5 for torch_is_faster in by_torch), strict=True)
    )
    monkeypatch.setattr(fast_attention, "_gains", lambda *sizes: gains)
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    plan = tok.fast()
    assert plan.vit.blocks[0].attention.by_torch == by_torch
    pixels = torch.randn(5, 3, 64, 64)
    assert torch.equal(plan.encode(pixels), tok.encode(pixels))
    assert torch.equal(plan.encode(pixels[:1]), tok.encode(pixels[:1]))
    with backend("reference"):
        assert torch.equal(plan.encode(pixels), tok.encode(pixels)), "a forced backend is kept to"


def test_a_measured_plan_gives_the_same_codes():
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(tok.fast(cross_attention="measured").encode(pixels), tok.encode(pixels))


def test_a_wrong_form_is_named():
    with pytest.raises(
        ValueError, match="cross_attention must be 'auto', 'measured', 'absorbed' or 'projected', got 'fused'"
    ):
        SeedTokenizer.from_pretrained("seed-tiny").fast(cross_attention="fused")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("again", [lambda it: pickle.loads(pickle.dumps(it)), copy.deepcopy], ids=["pickle", "copy"])
def test_a_plan_can_be_pickled_and_copied(dtype, again):
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    plan = tok.fast(dtype=dtype)
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = plan.encode(pixels)
    made = again(plan)
    assert torch.equal(made.encode(pixels), expected)
    assert (made.dtype, made.device, made.config) == (plan.dtype, plan.device, plan.config)
    assert torch.equal(again(made).encode(pixels), expected)
    made.vit.norm.weight.mul_(2)  # a plan of its own
    assert torch.equal(plan.encode(pixels), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.complex64, "float16"])
def test_a_dtype_that_a_plan_has_not_is_refused_at_once(dtype):
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    with pytest.raises(TypeError, match=rf"^fast: dtype must be float32, bfloat16 or float16, got {dtype}$"):
        tok.fast(dtype=dtype)
    with pytest.raises(TypeError, match=r"^fast: dtype must be float32, bfloat16 or float16, got torch.float64$"):
        tok.double().fast()
