"""`seed-fast bench` outside and inside the source tree."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from seed_fast import bench
from seed_fast.cli import app


def test_without_the_source_tree_it_says_where_it_looked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site-packages" / "seed_fast" / "bench.py"))
    assert bench.run(["ops"]) == 2
    message = capsys.readouterr().err
    assert str(tmp_path / "site-packages") in message
    assert "clone of the repository" in message


def test_paths_are_handed_on_as_absolute_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(bench, "run", lambda arguments: seen.append(arguments) or 0)
    result = CliRunner().invoke(app, ["bench", "--quick", "--threads", "1", "-o", "new.json", "--compare", "old.json"])
    assert result.exit_code == 0, result.output
    paths = ["--output", str(tmp_path / "new.json"), "--compare", str(tmp_path / "old.json")]
    assert seen == [["ops", "--quick", "--threads", "1", *paths]]


@pytest.mark.parametrize("code", [0, 1])
def test_exit_code_is_that_of_the_run(monkeypatch, code):
    monkeypatch.setattr(bench, "run", lambda arguments: code)
    assert CliRunner().invoke(app, ["bench"]).exit_code == code


def test_it_runs_the_benchmarks_of_the_tree(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert bench.run(["no_such_op"]) == 2
    assert "nearest_code" in capfd.readouterr().err
