"""Folders of language models: a model as transformers saves it, or an adapter as peft does; both with a tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADAPTER_CONFIG = "adapter_config.json"
UNTIED = "base"  # inside an adapter's folder: its base, where it needs one of its own


@dataclass(frozen=True)
class Family:
    """What LoRA is put on, by transformers' model_type.

    Args:
        linears: every linear layer of a block.
        norms: the norms, as the official SEED-LLaMA recipe trains them.
    """

    linears: tuple[str, ...]
    norms: tuple[str, ...]


FAMILIES = {
    "opt": Family(("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"), ()),
    "llama": Family(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        ("input_layernorm", "post_attention_layernorm", "norm"),
    ),
}


def family_of(config: Any, source: str | Path) -> Family:
    """The family of a transformers config.

    Raises:
        ValueError: it is neither OPT nor LLaMA.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(f"{source}: model_type must be one of {', '.join(FAMILIES)}, got {config.model_type!r}")
    return FAMILIES[config.model_type]


def is_adapter(folder: str | Path) -> bool:
    """Whether the folder holds an adapter instead of a model."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def base_of(folder: str | Path) -> Path:
    """The folder of the model that an adapter is for; a model's own."""
    if not is_adapter(folder):
        return Path(folder)
    inside = Path(folder) / UNTIED
    if (inside / "config.json").is_file():
        return inside
    return Path(json.loads((Path(folder) / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"])


def read_config(folder: str | Path) -> Any:
    """The transformers config of a local folder; of an adapter, its base's.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the family is unknown.
    """
    from transformers import AutoConfig

    folder = base_of(folder)
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: must be a folder with a model of transformers, got one without config.json")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    family_of(config, folder)
    return config


def read_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a local folder.

    Raises:
        FileNotFoundError: there is none.
    """
    from transformers import AutoTokenizer

    if not any((Path(folder) / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json", "vocab.json")):
        raise FileNotFoundError(f"{folder}: must hold a tokenizer, got a folder without tokenizer_config.json")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def has_weights(folder: str | Path) -> bool:
    """Whether the folder has a model's weights."""
    return any(any(Path(folder).glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin"))
