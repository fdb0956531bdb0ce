"""Fixtures that several folders of tests share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from seed_fast import SeedConfig

GOLDEN = Path(__file__).parent / "golden"


class Golden(NamedTuple):
    """One file of golden data: weights by official names, and what the official code computed with them."""

    config: SeedConfig
    weights: dict
    inputs: dict
    outputs: dict


def _config(cfg: dict) -> SeedConfig:
    is_seed1 = "text_features_dim" in cfg
    return SeedConfig(
        image_size=cfg["img"],
        patch_size=cfg["patch"],
        vit_dim=cfg["vit_dim"],
        vit_depth=cfg["vit_depth"],
        vit_heads=cfg["vit_heads"],
        vit_ffn_dim=int(cfg["vit_dim"] * cfg["mlp_ratio"]),
        qformer_dim=cfg["hidden"],
        qformer_depth=cfg["layers"],
        qformer_heads=cfg["heads"],
        qformer_ffn_dim=cfg["inter"],
        codebook_size=cfg["n_embed"],
        code_dim=cfg["e_dim"],
        decoder_depth=cfg["decode_depth"],
        decoder_heads=cfg["block_heads"],
        head="reverse_qformer" if is_seed1 or cfg["use_qformer_image"] else "mlp",
        generation_tokens=cfg.get("reverse_tokens", 1),
        generation_dim=cfg["text_features_dim" if is_seed1 else "image_features_dim"],
        reverse_depth=cfg["reverse_layers"] or 0,
    )


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """`golden("seed2_tiny")`: one golden file, and the config that its sizes mean."""
    from safetensors import safe_open

    def load(name: str) -> Golden:
        groups: dict[str, dict] = {"w": {}, "in": {}, "out": {}}
        with safe_open(GOLDEN / f"golden_{name}.safetensors", "pt") as file:
            cfg = json.loads(file.metadata()["cfg"])
            for key in file.keys():  # noqa: SIM118 (not a dict)
                group, _, rest = key.partition("/")
                groups.setdefault(group, {})[rest] = file.get_tensor(key)
        return Golden(_config(cfg), groups["w"], groups["in"], groups["out"])

    return load
