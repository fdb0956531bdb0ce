"""Fixtures of the command's tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from seed_fast.cli import app

Records = dict[str, list[int]]


@pytest.fixture
def seed_fast() -> Callable:
    """`seed_fast("tokenize", ...)` runs the command in this process: exit_code, stdout, stderr."""

    def run(*arguments: object):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def records() -> Callable[[Path], Records]:
    """Path to codes of a JSON-lines output, which must not hold a path twice."""

    def read(output: Path) -> Records:
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        assert all(line.keys() == {"path", "codes"} for line in lines)
        found = {line["path"]: line["codes"] for line in lines}
        assert len(found) == len(lines), "a line is doubled"
        return found

    return read


@pytest.fixture(scope="session")
def tok():
    """The embedded tokenizer."""
    from seed_fast import SeedTokenizer

    return SeedTokenizer.from_pretrained("seed-tiny")
