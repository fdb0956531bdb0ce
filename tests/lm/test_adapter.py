"""The fast layers against peft's own: the same state dict, numbers and gradients; and when peft's run."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("peft")

from peft.tuners.lora.layer import Linear as PeftLinear
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

from seed_fast.lm.adapter import LoraLinear, TokenRows, keep_mask, use_fast_layers
from seed_fast.lm.model import Lora, build
from seed_fast.testing import error_ratio
from tests.lm.tiny import CODEBOOK, base


def make(tmp_path, family="opt", dropout=0.0):
    torch.manual_seed(0)
    language = build(base(tmp_path / family, family), codebook_size=CODEBOOK, lora=Lora(rank=4, dropout=dropout))
    generator = torch.Generator().manual_seed(2)
    for p in language.model.parameters():  # LoRA's B begins at zero
        if p.requires_grad:
            p.data += 0.1 * torch.randn(p.shape, generator=generator)
    return language


def linear(model) -> PeftLinear:
    return next(module for module in model.modules() if isinstance(module, PeftLinear))


def gradients(model, ids):
    model.zero_grad()
    logits = model(ids).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_logits_gradients_and_state_dict_are_those_of_peft(tmp_path, family):
    model, _, vocabulary = make(tmp_path, family)
    ids = torch.tensor([[2, 7, *vocabulary.image([3, 1, 3]), 9], [2, 5, 6, 7, 8, 9, 10, vocabulary.first_code]])
    logits, expected = gradients(model, ids)
    true_logits, true = gradients(copy.deepcopy(model).double(), ids)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = {name: type(module) for name, module in model.named_modules()}
    changed = use_fast_layers(model)
    assert changed == sum(kind in (PeftLinear, TrainableTokensLayer) for kind in kinds.values()) > 12
    fast, found = gradients(model, ids)
    assert error_ratio(fast, logits, true_logits) <= 2
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value) or error_ratio(found[name], value, true[name]) <= 3, name
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_dropout_is_pefts_in_distribution(tmp_path):
    """Its mean over many draws is the output without dropout; its spread is that of peft's own layer."""
    model, *_ = make(tmp_path, dropout=0.25)
    layer = linear(model)
    x = torch.randn(1, layer.in_features)

    def draws():
        torch.manual_seed(0)
        return layer(x.expand(20_000, -1)).double()

    layer.eval()
    exact = layer(x).double()
    layer.train()
    peft = draws()
    use_fast_layers(model)
    assert isinstance(layer, LoraLinear)
    ours = draws()
    spread = peft.std(0)
    assert spread.min() > 0
    assert ((ours.mean(0) - exact).abs() < 5 * spread / 20_000**0.5).all()
    torch.testing.assert_close(ours.std(0), spread, rtol=0.05, atol=0)
    assert torch.equal(ours, draws())


def test_a_dropped_input_gets_no_gradient_through_the_adapter(tmp_path):
    model, *_ = make(tmp_path, dropout=0.5)
    use_fast_layers(model)
    layer = linear(model)
    layer.base_layer.weight.data.zero_()
    x = torch.randn(64, layer.in_features, requires_grad=True)
    torch.manual_seed(3)
    layer(x).sum().backward()
    torch.manual_seed(3)
    kept, share = keep_mask(x.shape, 0.5, x.device)
    assert share == 0.5
    assert torch.equal(x.grad != 0, kept)


@pytest.mark.parametrize("dropout", [0.05, 0.5, 0.999])
def test_masks_keep_the_share_that_they_say(dropout):
    torch.manual_seed(0)
    kept, share = keep_mask(torch.Size([1003, 997]), dropout, torch.device("cpu"))
    assert kept.shape == (1003, 997)
    assert kept.dtype == torch.bool
    assert abs(share - (1 - dropout)) < 2**-16
    count = kept.numel()
    assert abs(kept.double().mean() - share) < 5 * (share * (1 - share) / count) ** 0.5
    rows = kept.double() - share  # neighbours are independent
    assert abs((rows[:, 1:] * rows[:, :-1]).mean()) < 5 * share * (1 - share) / count**0.5


def test_merged_and_disabled_adapters_run_as_pefts(tmp_path):
    model, _, vocabulary = make(tmp_path)
    model.eval()
    ids = torch.tensor([[2, *vocabulary.image([3, 1]), 9]])
    with torch.no_grad():
        own, truth = model(ids).logits, copy.deepcopy(model).double()(ids).logits
        with model.disable_adapter():
            without = model(ids).logits
        use_fast_layers(model)
        with model.disable_adapter():
            assert torch.equal(model(ids).logits, without)
        merged = model.merge_and_unload()
        assert error_ratio(merged(ids).logits, own, truth) <= 3  # a sum of weights is rounded once more


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, about transformers' names
def test_layers_of_other_kinds_stay_pefts(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    inner = AutoModelForCausalLM.from_pretrained(base(tmp_path / "base"))
    model = get_peft_model(inner, LoraConfig(target_modules=["q_proj"], use_dora=True, trainable_token_indices=[3, 5]))
    assert use_fast_layers(model) == 0
    assert not any(isinstance(module, (LoraLinear, TokenRows)) for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_adapters_stay_float32_on_a_half_precision_base(tmp_path, family, dtype):
    folder = base(tmp_path / "base", family)
    language = build(folder, codebook_size=CODEBOOK, lora=Lora(rank=4, norms=False), dtype=dtype)
    use_fast_layers(language.model)
    learned = [p for p in language.model.parameters() if p.requires_grad]
    assert {p.dtype for p in learned} == {torch.float32}
    assert {p.dtype for p in language.model.parameters() if not p.requires_grad} == {dtype}
    logits = language.model(torch.tensor([[2, 5, 6, 20]])).logits
    assert logits.dtype == dtype
    logits.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in learned)
