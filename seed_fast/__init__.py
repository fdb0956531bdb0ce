"""seed_fast: the SEED image tokenizer, fast and exact. An image becomes 32 causally ordered codes.

Public names load on first use, so `import seed_fast` costs nothing and touches neither torch nor a GPU.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "SeedConfig": "seed_fast.model.config",
    "SeedTokenizer": "seed_fast.model.tokenizer",
}
_SUBMODULES = ("convert", "data", "model", "ops")

__all__ = [*_HOME, *_SUBMODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _SUBMODULES:
        return import_module(f"seed_fast.{name}")
    raise AttributeError(f"module 'seed_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
