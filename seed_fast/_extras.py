"""Optional packages: which extra of seed_fast installs each, and the message where one is missing."""

from __future__ import annotations

import importlib.util

EXTRAS = {
    "transformers": "train",
    "peft": "train",
    "tensorboard": "train",
    "diffusers": "draw",
    "accelerate": "draw",
    "gradio": "ui",
    "matplotlib": "bench",
    "faiss": "bench",
    "zstandard": "zstd",
    "xformers": "xformers",
    "skimage": "demo",
}


def require(*names: str) -> None:
    """Check that packages are installed, before any slow work starts.

    Raises:
        ModuleNotFoundError: a package is missing; the message has the line that installs it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(_line(name), name=name)


def explain(error: ImportError) -> str:
    """Return one line about a failed import: how to install the package if an extra has it, else the error itself."""
    name = (error.name or "").partition(".")[0]
    return _line(name) if isinstance(error, ModuleNotFoundError) and name in EXTRAS else str(error)


def _line(name: str) -> str:
    return f"this needs {name}, which is not installed: pip install 'seed_fast[{EXTRAS[name]}]'"
