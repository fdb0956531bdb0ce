"""One way from a name to a folder: a local folder, or a model of the Hugging Face hub by its id.

    owner/name            the newest version of the repository
    owner/name@revision   a branch, a tag or a commit of it

A local folder of that name wins. What was downloaded before serves again without a network (`HF_HUB_OFFLINE=1` never
asks); where the hub's cache lies and which server is asked are the hub client's own settings.
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
    """A model of the hub."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "")


def hub_id(name: str | Path) -> HubId | None:
    """What `name` means on the hub; None if it is a local folder or file, or can't be an id."""
    match = _ID.fullmatch(str(name))
    if match is None or Path(name).exists() or any(part in (".", "..") for part in match["repository"].split("/")):
        return None
    return HubId(match["repository"], match["revision"])


def local_folder(name: str | Path, patterns: Sequence[str], *, without: Sequence[str] = (), or_else: str = "") -> Path:
    """The folder that `name` stands for, downloaded if it is a hub id.

    Args:
        name: a folder, `owner/name`, or `owner/name@revision`.
        patterns: of the files that are needed, as the hub's client takes them.
        without: patterns of files that are not.
        or_else: what else the name could have been, for the message.

    Raises:
        FileNotFoundError: there is no such folder, and the name can't be a hub id.
        OSError: the hub has no such model, can't be reached, or is not to be asked and the model isn't in its cache.
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
    """The folder of a language model, or of an adapter; pickled weights are downloaded only where there are no others.

    Raises:
        FileNotFoundError, OSError: as `local_folder`.
    """
    return Path(name) if Path(name).is_dir() else _downloaded(str(name))


@lru_cache(maxsize=64)  # many functions ask for one folder, and the hub is asked once
def _downloaded(name: str) -> Path:
    folder = local_folder(name, LANGUAGE_MODEL, without=OF_TRAINING)
    if not any(folder.glob("*.safetensors")):
        folder = local_folder(name, [*LANGUAGE_MODEL, *PICKLED], without=OF_TRAINING)
    return folder
