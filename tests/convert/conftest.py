"""Official checkpoints at a tiny size, as files the way people have them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from seed_fast import SeedConfig
from seed_fast.testing import random_official_state_dict

CONFIGS = {
    "seed-2": replace(
        SeedConfig.preset("seed-tiny"),
        vit_dim=40,
        vit_depth=3,
        vit_heads=5,
        vit_ffn_dim=72,
        qformer_dim=48,
        qformer_depth=5,
        qformer_heads=3,
        qformer_ffn_dim=80,
        cross_attention_every=3,
        codebook_size=64,
        code_dim=12,
        decoder_depth=3,
        decoder_heads=6,
        generation_dim=20,
        reverse_depth=3,
    ),
}
CONFIGS["seed-2-rqf"] = replace(CONFIGS["seed-2"], head="reverse_qformer")
CONFIGS["seed-1"] = replace(CONFIGS["seed-2-rqf"], generation_tokens=77)


@pytest.fixture(params=CONFIGS)
def config(request) -> SeedConfig:
    """Each format in turn, at sizes that no preset has."""
    return CONFIGS[request.param]


@pytest.fixture
def seed2() -> SeedConfig:
    """A SEED-2 with the MLP head."""
    return CONFIGS["seed-2"]


@pytest.fixture
def weights(seed2):
    """Official state dict of `seed2`."""
    return random_official_state_dict(seed2, seed=3)


@pytest.fixture
def official_folder(tmp_path, seed2, weights):
    """`seed_quantizer.pt` with surplus tensors, `eva_vit_g.pth` in half precision, and the config of this size."""
    return write_official_folder(tmp_path / "official", weights, seed2)


def write_official_folder(folder, weights, config):
    """Split a state dict into the two files of the SEED-2 release, with the surplus that the real ones have."""
    prefix = "visual_encoder."
    eva = {name.removeprefix(prefix): value.half() for name, value in weights.items() if name.startswith(prefix)}
    last = f"blocks.{config.vit_depth - 1}."
    for name in [name for name in eva if name.startswith(last)]:
        eva[name.replace(last, f"blocks.{config.vit_depth}.")] = torch.ones_like(eva[name])
    eva["norm.weight"] = eva["fc_norm.bias"] = torch.ones(config.vit_dim).half()
    rest = {name: value for name, value in weights.items() if not name.startswith(prefix)}
    rest["Qformer.cls.predictions.bias"] = torch.zeros(30)
    rest["blocks_text.0.norm1.weight"] = torch.ones(config.qformer_dim)
    folder.mkdir(parents=True)
    torch.save(rest, folder / "seed_quantizer.pt")
    torch.save(eva, folder / "eva_vit_g.pth")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder


@pytest.fixture
def as_loaded(weights):
    """The weights as the official folder gives them: the image encoder went through half precision."""
    return {
        name: value.half().float() if name.startswith("visual_encoder.") else value for name, value in weights.items()
    }
