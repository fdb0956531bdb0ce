"""`--compare`: a loss of speed relative to the peers fails, milliseconds do not matter, what is missing is said."""

from __future__ import annotations

import copy

import pytest

from benchmarks import results, run
from benchmarks.compare import compare
from seed_fast.cli.bench import BenchOptions


def ours(measured):
    return next(row for row in measured["rows"] if row["ours"])


def test_the_same_results_pass(measured):
    verdict = compare(measured, copy.deepcopy(measured))
    assert verdict.regressions == verdict.missing == []
    assert verdict.compared == 1


def test_a_slower_machine_is_no_regression(measured):
    new = copy.deepcopy(measured)
    for row in new["rows"]:
        if row["wall_ms"]:
            row["wall_ms"] = {name: 10 * value for name, value in row["wall_ms"].items()}
    assert compare(measured, new).regressions == []


@pytest.mark.parametrize(("kept", "regressions"), [(0.81, 0), (0.79, 1), (2.0, 0)])
def test_a_lost_share_of_the_speedup_beyond_the_threshold_is_one(measured, kept, regressions):
    new = copy.deepcopy(measured)
    ours(new)["speedup"] *= kept
    verdict = compare(measured, new, threshold=0.2)
    assert len(verdict.regressions) == regressions
    if regressions:
        assert "doubling N=4 float32 on cpu seed_fast" in verdict.regressions[0]
        assert "(-21%)" in verdict.regressions[0]


def test_a_bar_that_loses_ground_against_its_peer_is_one(measured):
    new = copy.deepcopy(measured)
    new["bars"][0]["ratio"] *= 0.5
    assert "bar 'ahead of the loop'" in compare(measured, new).regressions[0]


def test_what_turned_wrong_is_one_and_a_peer_that_did_is_not(measured):
    new = copy.deepcopy(measured)
    for row in new["rows"]:
        if row["provider"] in ("seed_fast", "loop"):
            row.update(status="wrong: all of it", wall_ms=None, speedup=None)
    verdict = compare(measured, new)
    assert verdict.regressions == ["doubling N=4 float32 on cpu seed_fast: wrong: all of it"]


def test_missing_rows_are_reported(measured):
    new = copy.deepcopy(measured)
    new["rows"] = [row for row in new["rows"] if not row["ours"]]
    verdict = compare(measured, new)
    assert verdict.regressions == []
    assert verdict.missing == ["doubling N=4 float32 on cpu seed_fast: not in the new results"]


def test_threshold_outside_its_range_is_refused(measured):
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\), got 1"):
        compare(measured, measured, threshold=1)


def test_the_exit_code_follows_the_verdict(measured, tmp_path, capsys):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    results.save(measured, old)
    assert run.bench(BenchOptions(results=old, compare=old)) == 0
    ours(measured)["speedup"] *= 0.5
    results.save(measured, new)
    assert run.bench(BenchOptions(results=new, compare=old)) == 1
    assert "1 regressions" in capsys.readouterr().err
    assert run.bench(BenchOptions(results=new, compare=old, threshold=0.6)) == 0


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    assert run.bench(BenchOptions(compare=tmp_path / "none.json")) == 2
    assert "none.json" in capsys.readouterr().err
