"""The examples in docstrings of generate and eval give what they show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

pytest.importorskip("transformers")

MODULES = [
    "seed_fast.generate.batches",
    "seed_fast.generate.captioning",
    "seed_fast.generate.decoding",
    "seed_fast.generate.drawing",
    "seed_fast.eval.language_model",
    "seed_fast.eval.recalls",
    "seed_fast.eval.retrieval",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])  # where examples/seed-opt-tiny lies
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed
