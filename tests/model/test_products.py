"""Products of the plan: right in oneDNN and without it, and no copy of a weight that can be shared."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seed_fast import SeedTokenizer
from seed_fast.model import fast_qformer, products
from seed_fast.model.fast_qformer import AbsorbedByImage
from seed_fast.model.products import Linear, onednn_takes, product

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(not onednn_takes(CPU, torch.float32), reason="no oneDNN here")
MIXED = "ignore:TF32 acceleration on top of oneDNN:UserWarning"  # torch's, from entering flags()


@pytest.fixture(params=["oneDNN", "torch's choice"])
def anywhere(request, monkeypatch):
    """Each test with oneDNN, where it is, and as on a machine without."""
    if request.param == "torch's choice":
        for module in (products, fast_qformer):
            monkeypatch.setattr(module, "onednn_takes", lambda device, dtype: False)
    elif not onednn_takes(CPU, torch.float32):
        pytest.skip("no oneDNN here")


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
    assert Linear(module.weight, module.bias, torch.float32).weight.data_ptr() == module.weight.data_ptr()
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
    monkeypatch.setattr(products.platform, "machine", lambda: "aarch64")
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
def test_float32_on_a_cpu_takes_the_form_by_image():
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    plans = [tok.fast(dtype=dtype, cross_attention="absorbed") for dtype in (torch.float32, torch.bfloat16)]
    kinds = [{type(cross) for cross in plan.qformer.crosses if cross is not None} for plan in plans]
    assert kinds[0] == {AbsorbedByImage}
    assert AbsorbedByImage not in kinds[1]
