"""Reading folders of language models: configs, tokenizers, and the base of an adapter.

A folder holds a model as transformers saves it, or an adapter as peft does; both with a tokenizer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seed_fast._disguise import refuse_disguised
from seed_fast._hub import hub_id, language_model_folder
from seed_fast._text import read_json_object, shown
from seed_fast.model.config import MOST

ADAPTER_CONFIG = "adapter_config.json"
_SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings",
    "ffn_dim", "intermediate_size",  # the width inside a block, in OPT and in LLaMA
)  # fmt: skip
_JSON_FILES = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "model.safetensors.index.json", "pytorch_model.bin.index.json",
)  # fmt: skip
FURTHEST_UP = 2  # levels; a base further up is named by its absolute path
UNTIED = "base"  # subfolder of an adapter for a base that was written for it, with an output head of its own


@dataclass(frozen=True)
class Family:
    """The modules that adapters train in models of one transformers `model_type`.

    Args:
        linears: names of all linear layers of a block, for LoRA.
        norms: names of the norms that the official SEED-LLaMA recipe trains.
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
    """Return the family of a model by its transformers config.

    Raises:
        ValueError: the model is neither OPT nor LLaMA.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(f"{source}: model_type must be one of {', '.join(FAMILIES)}, got {config.model_type!r}")
    return FAMILIES[config.model_type]


def is_adapter(folder: str | Path) -> bool:
    """True if the folder or hub id holds an adapter and not a whole model."""
    return (language_model_folder(folder) / ADAPTER_CONFIG).is_file()


def base_of(folder: str | Path) -> str:
    """Return the base of an adapter, as a path or a hub id; for a whole model, its own name.

    A relative path in adapter_config.json is relative to the adapter's folder, or else to the working directory.
    """
    if not is_adapter(folder):
        return str(folder)
    inside = language_model_folder(folder) / UNTIED
    if (inside / "config.json").is_file():
        return str(inside)
    saved = adapter_config(folder)
    base = saved.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{Path(folder) / ADAPTER_CONFIG}: base_model_name_or_path must be a path, got {shown(base)}")
    beside = language_model_folder(folder) / base
    if beside.is_dir():
        return os.path.normpath(beside)
    revision = saved.get("revision")
    if hub_id(base) is not None and isinstance(revision, str) and "@" not in base:
        return f"{base}@{revision}"
    return base


def base_folder(folder: str | Path, base: str | Path | None = None) -> Path:
    """Return the local folder of an adapter's base (for a whole model, its own), downloaded if it is on the hub.

    Args:
        folder: folder or hub id of an adapter or a model.
        base: path or hub id that replaces what the adapter says.

    Raises:
        OSError: there is no such folder, and no such model on the hub.
    """
    name = base if base is not None else base_of(folder)
    try:
        return language_model_folder(name)
    except OSError as error:
        if base is not None or not is_adapter(folder):
            raise
        raise type(error)(f"{folder}: the adapter's base isn't there, give another `base`: {error}") from None


def base_reference(name: str, folder: Path) -> tuple[str, str | None]:
    """Return how adapter_config.json should name the base, avoiding absolute paths where possible.

    Args:
        name: path or hub id of the base.
        folder: folder of the adapter.

    Returns:
        base_model_name_or_path and revision: a hub id and its revision; or a path relative to `folder`, if the base is
        inside it, beside it or one further up; or else its whole path. The revision is None without a hub id.
    """
    on_hub = hub_id(name)
    if on_hub is not None:
        return on_hub.repository, on_hub.revision
    relative = Path(os.path.relpath(Path(name).resolve(), folder.resolve()))
    return (relative.as_posix() if relative.parts.count("..") <= FURTHEST_UP else str(Path(name).resolve())), None


def adapter_config(folder: str | Path) -> dict[str, Any]:
    """Return the content of adapter_config.json.

    Raises:
        ValueError: the file isn't a JSON object.
    """
    return read_json_object(language_model_folder(folder) / ADAPTER_CONFIG)


def read_config(folder: str | Path, base: str | Path | None = None) -> Any:
    """Read the transformers config of a model's folder or hub id; for an adapter, that of its base.

    Args:
        folder: folder or hub id of a model or an adapter.
        base: path or hub id that replaces the base that the adapter names.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: it isn't a config, the family is unknown, or a size is absurd.
    """
    from transformers import AutoConfig

    folder = base_folder(folder, base)
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: must be a folder with a model of transformers, got one without config.json")
    source = Path(folder) / "config.json"
    refuse_disguised(Path(folder), ("config.json", "*.safetensors", "pytorch_model*.bin"))
    _check_json(Path(folder))
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        raise
    except Exception as error:  # transformers and its validators raise many kinds on a config that isn't one
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{source}: must be the config of a language model, got: {reason[:200]}") from error
    family_of(config, folder)
    for name in _SIZES:
        value = getattr(config, name, 1)
        most = MOST["vit_depth"] if name == "num_hidden_layers" else MOST["codebook_size"]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(f"{source}: {name} must be an integer in 1..{most}, got {shown(value)}")
    return config


def read_tokenizer(folder: str | Path) -> Any:
    """Load the tokenizer of a folder or hub id.

    Raises:
        FileNotFoundError: there are no files of a tokenizer.
        ValueError: the files are damaged.
    """
    from transformers import AutoTokenizer

    folder = language_model_folder(folder)
    if not any((Path(folder) / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json", "vocab.json")):
        raise FileNotFoundError(f"{folder}: must hold a tokenizer, got a folder without tokenizer_config.json")
    refuse_disguised(Path(folder), ("*.json", "merges.txt", "*.model", "adapter_model.*"))
    _check_json(Path(folder))
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ImportError):
        raise
    except Exception as error:  # transformers and tokenizers raise many kinds on files that are no tokenizer's
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{folder}: must hold a tokenizer of transformers, got: {reason[:200]}") from error


def _check_json(folder: Path) -> None:
    """Read the JSON files first: transformers has no limit of depth, and its errors don't name the file."""
    for name in _JSON_FILES:
        path = folder / name
        if path.is_file():
            read_json_object(path)


def has_weights(folder: str | Path) -> bool:
    """True if the folder or hub id has weights of a model."""
    folder = language_model_folder(folder)
    return any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin"))
