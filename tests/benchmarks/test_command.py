"""`seed-fast bench`: one parser, whose options reach the benchmarks of the source tree whole."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from benchmarks import measure, results, run
from seed_fast.cli import app
from seed_fast.cli.bench import BenchOptions

bench = sys.modules[BenchOptions.__module__]  # seed_fast.cli.bench, the name of which is the command too


@pytest.fixture
def handed_over(monkeypatch):
    """The options that `seed-fast bench` hands to the process that measures, which is not started here."""
    seen = {}

    def instead(command, **settings):
        assert command[:3] == [sys.executable, "-m", "benchmarks.run"]
        seen.update(json.loads(command[3]), cwd=settings["cwd"])
        return SimpleNamespace(returncode=seen.get("threads") or 0)

    monkeypatch.setattr(bench.subprocess, "run", instead)
    return seen


def test_every_option_reaches_the_benchmarks_and_paths_are_absolute(tmp_path, monkeypatch, handed_over):
    monkeypatch.chdir(tmp_path)
    arguments = ["e2e", "--quick", "--full", "--json", "-o", "new.json", "--machine", "box", "--threads", "1"]
    arguments += ["--compare", "old.json", "--threshold", "0.5", "--results", "made.json"]
    CliRunner().invoke(app, ["bench", *arguments])
    assert handed_over.pop("cwd") == results.ROOT
    assert handed_over == {
        "what": "e2e", "quick": True, "full": True, "as_json": True, "output": str(tmp_path / "new.json"),
        "machine": "box", "threads": 1, "compare": str(tmp_path / "old.json"), "threshold": 0.5,
        "results": str(tmp_path / "made.json"),
    }  # fmt: skip
    assert set(handed_over) == {field.name for field in fields(BenchOptions)}


@pytest.mark.parametrize("code", [0, 1])
def test_exit_code_is_that_of_the_run(monkeypatch, code):
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=code))
    assert CliRunner().invoke(app, ["bench"]).exit_code == code


def test_without_the_source_tree_it_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site-packages" / "seed_fast" / "cli" / "bench.py"))
    result = CliRunner().invoke(app, ["bench"])
    assert result.exit_code == 2
    assert str(tmp_path / "site-packages") in result.stderr
    assert "clone of the repository" in result.stderr


def test_it_runs_the_benchmarks_of_the_tree_and_an_unknown_one_is_refused(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["bench", "no_such_op"]).exit_code == 2
    assert "must be one of ops, e2e" in (error := capfd.readouterr().err)
    assert "got 'no_such_op'" in error


def test_the_module_takes_the_same_options_by_asking_the_command(monkeypatch):
    seen = []
    monkeypatch.setattr(
        run.subprocess, "run", lambda command, **_: seen.append(command) or SimpleNamespace(returncode=3)
    )
    assert run.main(["ops", "--machine", "box"]) == 3
    assert seen == [[sys.executable, "-m", "seed_fast", "bench", "ops", "--machine", "box"]]


def test_the_machine_is_named_in_the_results_and_in_the_file(doubling, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "SECONDS_PER_CASE", 0.0)
    monkeypatch.setattr(measure.timing, "ceilings", lambda device, quick: {"copy_gb_per_s": 10.0})
    monkeypatch.setattr(run.catalog, "choose", lambda what: [replace(doubling, op="nearest_code")])
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert run.main([json.dumps(asdict(BenchOptions(machine="box")))]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["box.json"]
    assert results.load(tmp_path / "box.json")["provenance"]["machine"] == "box"
    assert "wrote" in capsys.readouterr().err


def test_code_compiled_under_hidden_instruction_sets_has_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # restored when the test ends
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    seen = []
    monkeypatch.setattr(run, "measure", lambda *_, **__: seen.append(run.os.environ["TORCHINDUCTOR_CACHE_DIR"]))
    with pytest.raises(TypeError):  # nothing was measured, so there is nothing to save
        run.bench(SimpleNamespace(**asdict(replace(BenchOptions(), quick=True))))
    assert seen[0].endswith("-avx2")
