"""Scripts of examples/ as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"


def example(name: str) -> ModuleType:
    """The script of this name; skips the test where examples/ is not beside the tests."""
    path = FOLDER / f"{name}.py"
    if not path.is_file():
        pytest.skip(f"{path}: no such file")
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))  # a script may import its neighbours, as it can when it is run
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
