"""Skips this folder where the interpreter is not built (`make test-ptx`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ptx.machine import ptx


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if ptx is None and here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="the interpreter of PTX is not built: make test-ptx"))
