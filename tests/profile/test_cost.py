"""The cost formulas against PyTorch's own count of the modules' products, and against their parameters."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.profile.cost import QFORMER_PARTS, costs

PRESETS = ["seed-1", "seed-2", "seed-tiny"]
# Of every size, two that are equal nowhere, so that no formula is right by taking the wrong one.
ODD = SeedConfig(
    image_size=35, patch_size=7, vit_dim=24, vit_depth=3, vit_heads=3, vit_ffn_dim=50, qformer_dim=32, qformer_depth=5,
    qformer_heads=2, qformer_ffn_dim=70, cross_attention_every=2, num_codes=9, codebook_size=40, code_dim=6,
    decoder_depth=1, decoder_heads=2, generation_dim=11,
)  # fmt: skip


def nearest_code_flops(z_shape, codebook_shape, *others, out_shape=None, **more):
    *rows, width = z_shape
    return 2 * torch.Size(rows).numel() * codebook_shape[0] * width


def attention_flops(q_shape, k_shape, *others, out_shape=None, **more):
    batch, queries, heads, width = q_shape
    return 4 * batch * queries * k_shape[1] * heads * width


def onednn_linear_flops(x_shape, weight_shape, *others, out_shape=None, **more):
    *rows, width = x_shape
    return 2 * torch.Size(rows).numel() * width * weight_shape[0]


def counted(call) -> int:
    """What PyTorch counts; the ops that it does not know, our own two among them, by their definition."""
    mapping = {torch.ops.seed_fast.attention: attention_flops, torch.ops.seed_fast.nearest_code: nearest_code_flops}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        mapping[torch.ops.mkldnn._linear_pointwise] = onednn_linear_flops
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=mapping) as mode:
        call()
    return mode.get_total_flops()


def shape_only(config: SeedConfig) -> SeedTokenizer:
    return SeedTokenizer(config, device="meta")


@pytest.mark.parametrize("config", [*map(SeedConfig.preset, PRESETS), ODD], ids=[*PRESETS, "odd"])
@pytest.mark.parametrize("batch", [1, 3])
def test_operations_of_the_plain_modules_are_what_pytorch_counts(config, batch):
    tok, cost = shape_only(config), costs(config, batch)
    pixels = torch.empty(batch, 3, config.image_size, config.image_size, device="meta")
    features = torch.empty(batch, config.num_tokens, config.vit_dim, device="meta")
    causal = torch.empty(batch, config.num_codes, config.qformer_dim, device="meta")
    assert cost["ViT"].flops == counted(lambda: tok.image_features(pixels))
    assert cost["Q-Former"].flops == counted(lambda: tok.query_embeddings(features))
    assert cost["nearest code"].flops == counted(lambda: tok.lookup(causal))
    layers = list(tok.qformer.layers)
    assert cost["Q-Former/FFN"].flops == counted(lambda: [layer.ffn(causal) for layer in layers])
    assert cost["Q-Former/self-attention"].flops == counted(
        lambda: [la.self_attention(causal, causal) for la in layers]
    )


@pytest.mark.parametrize("form", ["absorbed", "projected"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("config", [SeedConfig.preset("seed-tiny"), ODD], ids=["seed-tiny", "odd"])
def test_operations_of_the_plan_are_what_pytorch_counts(config, batch, form):
    plan, cost = SeedTokenizer(config).fast(cross_attention=form), costs(config, batch, plan=form)
    pixels = torch.randn(batch, 3, config.image_size, config.image_size)
    features, causal = plan.image_features(pixels), plan.causal_embeddings(pixels)
    assert cost["ViT"].flops == counted(lambda: plan.image_features(pixels))
    assert cost["Q-Former"].flops == counted(lambda: plan.query_embeddings(features))
    assert cost["nearest code"].flops == counted(lambda: plan.lookup(causal))


@pytest.mark.parametrize("config", [*map(SeedConfig.preset, PRESETS), ODD], ids=[*PRESETS, "odd"])
def test_weights_are_the_parameters_of_the_modules(config):
    tok, cost = shape_only(config), costs(config, 2)

    def size(*modules) -> int:
        return 4 * sum(p.numel() for module in modules for p in module.parameters())

    assert cost["ViT"].weight_bytes == size(tok.vit, tok.vision_norm)
    assert cost["Q-Former"].weight_bytes == size(tok.qformer)
    assert cost["nearest code"].weight_bytes == size(tok.quantizer.encode_task) + 4 * tok.quantizer.codebook.numel()


def test_parts_add_up_to_the_qformer_and_activations_grow_with_the_batch():
    for plan in ("plain", "absorbed", "projected"):
        one, four = costs(ODD, 1, plan=plan), costs(ODD, 4, plan=plan)
        assert one["Q-Former"].flops == sum(one[f"Q-Former/{part}"].flops for part in QFORMER_PARTS)
        assert four["Q-Former"].weight_bytes == one["Q-Former"].weight_bytes
        assert four["ViT"].activation_bytes == 4 * one["ViT"].activation_bytes


def test_half_precision_moves_half_the_bytes_except_where_the_plan_stays_in_float32():
    config = SeedConfig.preset("seed-tiny")
    whole, half = costs(config, 2, plan="absorbed"), costs(config, 2, "bfloat16", "absorbed")
    assert 2 * half["ViT"].bytes == whole["ViT"].bytes
    assert half["nearest code"] == whole["nearest code"]
    assert 2 * costs(config, 2, "float16")["nearest code"].bytes == whole["nearest code"].bytes


def test_absorbing_saves_the_work_that_the_plan_says_it_saves():
    config = SeedConfig.preset("seed-2")
    plain, absorbed = (costs(config, 8, plan=plan)["Q-Former/cross-attention"].flops for plan in ("plain", "absorbed"))
    assert absorbed < 0.65 * plain
    assert dataclasses.replace(config, cross_attention_every=3).qformer.cross_attention_every == 3
    fewer = costs(dataclasses.replace(config, cross_attention_every=3), 8)["Q-Former/cross-attention"].flops
    assert fewer * 6 == plain * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "batch must be at least 1, got 0"),
        ((1, "float64"), "dtype must be one of float32, bfloat16, float16, got 'float64'"),
        ((1, "float32", "fast"), "plan must be one of plain, absorbed, projected, got 'fast'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        costs(SeedConfig.preset("seed-tiny"), *arguments)
