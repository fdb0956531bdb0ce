"""Resolve a name to a folder: a local folder, or a model of the Hugging Face hub by its id.

    owner/name            the newest version of the repository
    owner/name@revision   a branch, a tag or a commit of it

A local folder of that name takes precedence. Downloaded files are used again without a network (with `HF_HUB_OFFLINE=1`
the hub is never asked). The place of the cache and the server are settings of the hub's own client.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?")

LANGUAGE_MODEL = (
    "*.json",
    "*.txt",
    "*.model",
    "*.safetensors",
    "README.md",
)  # of transformers and peft, tokenizer included
PICKLED = ("pytorch_model*.bin", "adapter_model.bin")  # where there are no safetensors
OF_TRAINING = ("checkpoints/*",)  # of a run's folder that was uploaded whole
PIPELINE = ("*.json", "*/*.txt", "*/model.safetensors", "*/diffusion_pytorch_model.safetensors")  # of diffusers


class HubId(NamedTuple):
    """Id of a model on the hub."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "")


def hub_id(name: str | Path) -> HubId | None:
    """Return the hub id that `name` is; None if it is a local folder or file, or can't be an id."""
    match = _ID.fullmatch(str(name))
    if match is None or Path(name).exists() or any(part in (".", "..") for part in match["repository"].split("/")):
        return None
    return HubId(match["repository"], match["revision"])


def local_folder(name: str | Path, patterns: Sequence[str], *, without: Sequence[str] = (), or_else: str = "") -> Path:
    """Return the folder that `name` stands for, after a download if it is a hub id.

    Args:
        name: a folder, `owner/name`, or `owner/name@revision`.
        patterns: glob patterns of the files that are needed.
        without: glob patterns of files that are not needed.
        or_else: what else the name could have been, for the message.

    Raises:
        FileNotFoundError: there is no such folder, and the name can't be a hub id.
        OSError: the hub has no such model or can't be reached, or it must not be asked and the cache lacks the model.
    """
    if Path(name).is_dir():
        return Path(name)
    found = hub_id(name)
    if found is None:
        is_file = Path(name).exists()
        raise FileNotFoundError(
            f"{name}: must be a folder, got a file"
            if is_file
            else f"{name}: no such folder{or_else}, and no hub id (owner/name)"
        )
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {"revision": found.revision} if found.revision else {}
    if without:
        options["ignore_patterns"] = list(without)
    try:
        return Path(snapshot_download(found.repository, allow_patterns=list(patterns), **options))
    except Exception as error:  # the hub client's own errors, its HTTP library's and the socket's share no base class
        text = str(error).strip()
        reason = text.splitlines()[0] if text else type(error).__name__
        raise OSError(f"{name}: no such folder, and not downloadable from the Hugging Face hub: {reason}") from error


def language_model_folder(name: str | Path) -> Path:
    """Return the folder of a language model or an adapter; pickled weights are downloaded only for want of others.

    Raises:
        FileNotFoundError, OSError: see `local_folder`.
    """
    return Path(name) if Path(name).is_dir() else _downloaded(str(name))


@lru_cache(maxsize=64)  # many functions ask for one folder, and the hub is asked once
def _downloaded(name: str) -> Path:
    folder = local_folder(name, LANGUAGE_MODEL, without=OF_TRAINING)
    if not any(folder.glob("*.safetensors")):
        folder = local_folder(name, [*LANGUAGE_MODEL, *PICKLED], without=OF_TRAINING)
    return folder
