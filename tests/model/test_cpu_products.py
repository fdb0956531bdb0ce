"""Products of the plan: right in every library, no copy of a weight that can be shared, and chosen by measurement."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seed_fast import SeedTokenizer
from seed_fast.convert import from_official
from seed_fast.model import calibration, cpu_products, fast_form
from seed_fast.model.cpu_products import ROUTES, Linear, Route, onednn_takes, product
from seed_fast.model.fast_qformer import AbsorbedCrossAttention

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(not onednn_takes(CPU, torch.float32), reason="no oneDNN here")
MIXED = "ignore:TF32 acceleration on top of oneDNN:UserWarning"  # torch's, from entering flags()


@pytest.fixture(params=[*ROUTES, "float32", "no oneDNN"])
def anywhere(request, monkeypatch):
    """Each test by each choice, and as on a machine without oneDNN."""
    if request.param == "no oneDNN":
        for module in (cpu_products, fast_form):
            monkeypatch.setattr(module, "onednn_takes", lambda device, dtype: False)
    elif not onednn_takes(CPU, torch.float32):
        pytest.skip("no oneDNN here")
    else:
        monkeypatch.setenv("SEED_FAST_PRODUCTS", request.param)


@pytest.fixture
def measured(monkeypatch):
    """Set what was measured: gains by size of weights and number of rows."""

    def set_gains(**gains):
        every = {name: gains.get(name, 1.0) for name in ROUTES}
        kind = dict.fromkeys(cpu_products.PARTS, every)
        table = {size: dict.fromkeys(rows, kind) for size, rows in cpu_products.SAMPLES.items()}
        monkeypatch.setattr(cpu_products, "float32_gains", lambda: table)

    monkeypatch.delenv("SEED_FAST_PRODUCTS", raising=False)
    return set_gains


def map_of(rows: int, columns: int, **kind) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(rows, columns, **kind)


def error(out: torch.Tensor, truth: torch.Tensor) -> float:
    return float((out.double() - truth).abs().max())


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 40), (7, 40), (3, 33, 40), (0, 40), (2, 0, 40)])
def test_a_linear_map_is_within_twice_the_error_of_torch(shape, dtype, gelu):
    module = map_of(40, 51)
    x = torch.randn(shape)
    with torch.no_grad():
        exact = module.double()(x.double())
        weight, bias = module.float().weight.to(dtype), module.bias.to(dtype)
        theirs = F.linear(x.to(dtype), weight, bias)
        ours = Linear(module.weight, module.bias, dtype, gelu=gelu)(x)
    exact, theirs = (F.gelu(exact), F.gelu(theirs)) if gelu else (exact, theirs)
    assert ours.dtype == dtype
    assert ours.shape == exact.shape
    assert ours.numel() == 0 or error(ours, exact) <= 2 * error(theirs, exact)


@pytest.mark.usefixtures("anywhere")
def test_gelu_is_the_exact_one():
    x = torch.linspace(-6, 6, 4096).view(-1, 8)
    identity = Linear(torch.eye(8), torch.zeros(8), torch.float32, gelu=True)
    truth = F.gelu(x.double())
    assert error(identity(x), truth) <= 2 * error(F.gelu(x), truth)
    assert error(F.gelu(x, approximate="tanh"), truth) > 100 * error(identity(x), truth)


@pytest.mark.usefixtures("anywhere")
def test_a_weight_is_copied_only_where_its_dtype_or_form_is_new():
    module = map_of(8, 8)
    kept = Linear(module.weight, module.bias, torch.float32)
    if not kept.routes["few"].blocked:  # asked for by name, since nothing else would copy this weight
        assert kept.weight.data_ptr() == module.weight.data_ptr()
    before = module.weight.detach().clone()
    for weight in (module.weight.double(), torch.cat([module.weight, module.weight])):
        bias = module.bias.repeat(len(weight) // 8)
        Linear(weight, bias, torch.float32)(torch.ones(1, 8))
    assert torch.equal(module.weight, before)


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_reads_views_where_they_are(dtype):
    if not onednn_takes(CPU, dtype):
        pytest.skip(f"no {dtype} in oneDNN here")
    x, y = torch.randn(70, 3, 24, dtype=dtype)[:, 1], torch.randn(24, 19, dtype=dtype).t()
    truth = x.double() @ y.double().t()
    assert error(product(x, y), truth) <= 2 * error(x @ y.t(), truth)


@pytest.mark.filterwarnings(MIXED)
def test_onednn_is_left_where_it_cannot_or_shall_not_run(monkeypatch):
    assert not onednn_takes(torch.device("meta"), torch.float32)
    assert not onednn_takes(torch.device("cuda"), torch.float32)
    assert not onednn_takes(CPU, torch.float64)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not onednn_takes(CPU, torch.float32)
    monkeypatch.setattr(cpu_products.platform, "machine", lambda: "aarch64")
    assert not onednn_takes(CPU, torch.float32)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["absorbed", "projected"])
def test_a_plan_stays_within_twice_the_error_of_the_modules_with_and_without_onednn(form, dtype):
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    features = torch.randn(3, tok.config.num_tokens, tok.config.vit_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = SeedTokenizer.from_pretrained("seed-tiny", dtype=dtype).query_embeddings(features.to(dtype))
        plan = tok.fast(dtype=dtype, cross_attention=form)
        ours = plan.query_embeddings(features)
        truth = tok.double().query_embeddings(features.double())
        assert (ours.double() - truth).norm() <= 2 * (plain.double() - truth).norm()
        assert plan.query_embeddings(features[:0]).shape == (0, *truth.shape[1:])
        assert torch.equal(plan.query_embeddings(features), ours)


@needs_onednn
@pytest.mark.parametrize(("name", "by_image"), [("mkl", (False, False)), ("onednn", (True, True))])
def test_cross_attention_is_made_in_the_library_that_is_fixed(name, by_image, monkeypatch):
    monkeypatch.setenv("SEED_FAST_PRODUCTS", name)
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    plans = [tok.fast(dtype=dtype, cross_attention="absorbed") for dtype in (torch.float32, torch.bfloat16)]
    crosses = [cross for plan in plans for cross in plan.qformer.crosses if cross is not None]
    assert all(isinstance(cross, AbsorbedCrossAttention) for cross in crosses)
    assert {cross.by_image for cross in crosses[: len(crosses) // 2]} == {by_image}
    assert {cross.by_image for cross in crosses[len(crosses) // 2 :]} == {(False, False)}


@needs_onednn
def test_what_does_not_gain_by_a_margin_is_left_to_torch(measured):
    measured(**{"onednn": 1.01, "onednn+gelu": 1.02, "onednn-blocked": 1.02})
    assert set(cpu_products.choices(64, 64).values()) == {cpu_products.MKL}
    assert set(cpu_products.choices(64, 64, gelu=True, shared=False).values()) == {cpu_products.MKL}
    measured(**{"onednn": 1.2, "onednn+gelu": 1.3, "onednn-blocked": 1.4})
    assert set(cpu_products.choices(64, 64, gelu=True).values()) == {Route(True, fused=True)}
    assert set(cpu_products.choices(64, 64, shared=False).values()) == {Route(True, blocked=True)}


@needs_onednn
def test_blocks_are_for_every_number_of_rows_or_none(measured):
    measured(**{"onednn": 1.2, "onednn-blocked": 1.4})
    table = cpu_products.float32_gains()
    worse = dict.fromkeys(ROUTES, 1.0)
    table["small"]["many"] = dict.fromkeys(cpu_products.PARTS, worse)
    found = cpu_products.choices(64, 64, shared=False)
    assert found == {"few": Route(True), "some": Route(True), "many": cpu_products.MKL}


@needs_onednn
def test_the_number_of_rows_chooses_the_route(measured, monkeypatch):
    measured(onednn=1.2)
    cpu_products.float32_gains()["small"]["few"] = dict.fromkeys(cpu_products.PARTS, dict.fromkeys(ROUTES, 1.0))
    seen = []
    real = cpu_products._linear
    monkeypatch.setattr(cpu_products, "_linear", lambda x, *rest: seen.append(len(x)) or real(x, *rest))
    layer = map_of(8, 8)
    linear = Linear(layer.weight, layer.bias, torch.float32)
    for rows in (1, cpu_products.FEW, cpu_products.MANY):
        linear(torch.ones(rows, 8))
    assert seen == [cpu_products.FEW, cpu_products.MANY]


@needs_onednn
def test_training_asks_for_transposed_matrices_apart(measured):
    measured(onednn=1.2)
    table = cpu_products.float32_gains()
    table["small"]["some"] = {**table["small"]["some"], "transposed": {"mkl": 1.0, "onednn": 0.6}}
    takes = [
        cpu_products.onednn_is_faster(512, 64, 64, CPU, torch.float32, transposed=turned) for turned in (False, True)
    ]
    assert takes == [True, False]


def test_a_wrong_setting_is_named(monkeypatch):
    monkeypatch.setenv("SEED_FAST_PRODUCTS", "blas")
    with pytest.raises(ValueError, match=r"SEED_FAST_PRODUCTS must be one of mkl, onednn, .*measure, got 'blas'"):
        SeedTokenizer.from_pretrained("seed-tiny").fast()


def separable(tok, pixels):
    """Codes, and where another rounding can't change them."""
    with torch.no_grad():
        z = tok.quantizer.encode_task(tok.causal_embeddings(pixels))
        distance = torch.cdist(z.double(), tok.quantizer.codebook.double()).topk(2, largest=False).values
    return tok.encode(pixels), (distance[..., 1] - distance[..., 0]) > 1e-4


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("name", ["seed-tiny", "seed2_tiny", "seed2_rqf_tiny", "seed1_tiny"])
def test_float32_codes_do_not_depend_on_the_choice(name, golden):
    if name == "seed-tiny":
        tok = SeedTokenizer.from_pretrained(name)
        pixels = torch.randn(9, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    else:
        tok, pixels = from_official(golden(name).weights, golden(name).config), golden(name).inputs["image"]
    codes, fixed = separable(tok, pixels)
    for form in ("absorbed", "projected"):
        found = tok.fast(cross_attention=form).encode(pixels)
        assert torch.equal(found[fixed], codes[fixed])
    assert fixed.double().mean() > 0.95


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_float32_products_is_half_precision(dtype, monkeypatch):
    """Weights are held in half precision, inputs and results rounded to it, and float32 in between is no worse."""
    monkeypatch.setenv("SEED_FAST_PRODUCTS", "float32")
    module = map_of(40, 51)
    x = torch.randn(7, 40)
    with torch.no_grad():
        ours = Linear(module.weight, module.bias, dtype)
        rounded = F.linear(x.to(dtype).double(), module.weight.to(dtype).double(), module.bias.to(dtype).double())
        found = ours(x)
        assert ours.weight.dtype == found.dtype == dtype
        in_float32 = F.linear(x.to(dtype).float(), module.weight.to(dtype).float(), module.bias.to(dtype).float())
        # One rounding to half precision, and what float32 products may be off.
        assert error(found, rounded) <= error(rounded.to(dtype), rounded) + 2 * error(in_float32, rounded)
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    plan = tok.fast(dtype=dtype)
    assert plan.products == "float32"
    pixels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    assert (plan.encode(pixels) == tok.encode(pixels)).double().mean() > 0.9


def test_slow_half_precision_is_said_once_and_computed_in_float32(monkeypatch, caplog):
    monkeypatch.delenv("SEED_FAST_PRODUCTS", raising=False)
    monkeypatch.setattr(cpu_products, "slowdown", lambda dtype: 8.0)
    cpu_products._warn_once.cache_clear()
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    with caplog.at_level(logging.WARNING, "seed_fast"):
        plans = [tok.fast(dtype=torch.bfloat16) for _ in range(2)]
    assert [plan.products for plan in plans] == ["float32"] * 2
    assert len(caplog.messages) == 1
    assert "bfloat16 takes 8.0 times as long as float32 on this CPU" in caplog.text
    caplog.clear()
    SeedTokenizer.from_pretrained("seed-tiny", dtype=torch.bfloat16).encode(torch.zeros(1, 3, 64, 64))
    assert "use float32, or tok.fast()" in caplog.text
    cpu_products._warn_once.cache_clear()


def test_half_precision_with_instructions_is_left_alone(monkeypatch, caplog):
    monkeypatch.delenv("SEED_FAST_PRODUCTS", raising=False)
    monkeypatch.setattr(cpu_products, "slowdown", lambda dtype: 0.5)
    monkeypatch.setattr(cpu_products, "_has_instructions", lambda dtype: True)
    cpu_products._warn_once.cache_clear()
    plan = SeedTokenizer.from_pretrained("seed-tiny").fast(dtype=torch.bfloat16)
    assert plan.products in ("onednn-blocked+gelu", "mkl")
    assert not caplog.messages


@needs_onednn
@pytest.mark.filterwarnings(MIXED)
def test_without_onednn_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(calibration, "answer", lambda question, *rest, **more: pytest.fail(question))
    monkeypatch.setattr("seed_fast.model.fast_attention._gains", lambda *sizes: {"one": 1, "several": 1})
    monkeypatch.setattr(fast_form, "_gains", lambda *of: {"one": {"by image": 1, "projected": 1}})
    with torch.backends.mkldnn.flags(enabled=False):
        plan = SeedTokenizer.from_pretrained("seed-tiny").fast()
    assert plan.products == "mkl"
    assert not any(cross.by_image[0] for cross in plan.qformer.crosses if cross is not None)
