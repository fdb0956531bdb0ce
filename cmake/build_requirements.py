"""Prints build-system.requires of pyproject.toml, one per line, for `pip install -r /dev/stdin`."""

from __future__ import annotations

from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
print("\n".join(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["build-system"]["requires"]))
