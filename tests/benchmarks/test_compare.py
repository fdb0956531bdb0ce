"""`--compare`: a loss of speed relative to the peers fails, milliseconds do not matter, what is missing is said."""

from __future__ import annotations

import copy

import pytest

from benchmarks import results, run
from benchmarks.compare import compare
from seed_fast.cli.bench import BenchOptions


def ours(found):
    return next(row for row in found["rows"] if row["ours"])


def test_the_same_results_pass(found):
    verdict = compare(found, copy.deepcopy(found))
    assert verdict.regressions == verdict.missing == []
    assert verdict.compared == 1


def test_a_slower_machine_is_no_regression(found):
    new = copy.deepcopy(found)
    for row in new["rows"]:
        if row["wall_ms"]:
            row["wall_ms"] = {name: 10 * value for name, value in row["wall_ms"].items()}
    assert compare(found, new).regressions == []


@pytest.mark.parametrize(("kept", "regressions"), [(0.81, 0), (0.79, 1), (2.0, 0)])
def test_a_lost_share_of_the_speedup_beyond_the_threshold_is_one(found, kept, regressions):
    new = copy.deepcopy(found)
    ours(new)["speedup"] *= kept
    verdict = compare(found, new, threshold=0.2)
    assert len(verdict.regressions) == regressions
    if regressions:
        assert "doubling N=4 float32 on cpu seed_fast" in verdict.regressions[0]
        assert "(-21%)" in verdict.regressions[0]


def test_a_bar_that_loses_ground_against_its_peer_is_one(found):
    new = copy.deepcopy(found)
    new["bars"][0]["ratio"] *= 0.5
    assert "bar 'ahead of the loop'" in compare(found, new).regressions[0]


def test_what_turned_wrong_is_one_and_a_peer_that_did_is_not(found):
    new = copy.deepcopy(found)
    for row in new["rows"]:
        if row["provider"] in ("seed_fast", "loop"):
            row.update(status="wrong: all of it", wall_ms=None, speedup=None)
    verdict = compare(found, new)
    assert verdict.regressions == ["doubling N=4 float32 on cpu seed_fast: wrong: all of it"]


def test_missing_rows_are_reported(found):
    new = copy.deepcopy(found)
    new["rows"] = [row for row in new["rows"] if not row["ours"]]
    verdict = compare(found, new)
    assert verdict.regressions == []
    assert verdict.missing == ["doubling N=4 float32 on cpu seed_fast: not in the new results"]


def test_threshold_outside_its_range_is_refused(found):
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\), got 1"):
        compare(found, found, threshold=1)


def test_the_exit_code_follows_the_verdict(found, tmp_path, capsys):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    results.save(found, old)
    assert run.bench(BenchOptions(results=old, compare=old)) == 0
    ours(found)["speedup"] *= 0.5
    results.save(found, new)
    assert run.bench(BenchOptions(results=new, compare=old)) == 1
    assert "1 regressions" in capsys.readouterr().err
    assert run.bench(BenchOptions(results=new, compare=old, threshold=0.6)) == 0


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    assert run.bench(BenchOptions(compare=tmp_path / "none.json")) == 2
    assert "none.json" in capsys.readouterr().err
