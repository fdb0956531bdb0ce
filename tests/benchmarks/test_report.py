"""Tables and figures come from results files, and a stale document is measured."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from benchmarks import catalog, figures, report, results, tables

PLACE = (("doubling",), Path("/repo"), Path("/repo/docs/figures"))
DOCUMENT = "before\n<!-- bench:doubling -->\nold\n<!-- /bench:doubling -->\nafter\n"
HIDDEN = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


@pytest.fixture
def second(measured):
    """The same rows from a machine with AVX-512 hidden."""
    other = copy.deepcopy(measured)
    other["provenance"] |= {"machine": "box-avx2", "cpu_capability": "AVX2", "instruction_limits": HIDDEN}
    other["bars"][0] |= {"ratio": 3.0}
    return other


def row_of(measured, provider):
    return next(row for row in measured["rows"] if row["provider"] == provider)


def test_the_table_shows_times_speedups_and_who_did_not_run(measured):
    text = report.refreshed(DOCUMENT, [measured], *PLACE)
    assert text.startswith("before\n<!-- bench:doubling -->\n")
    assert text.endswith("<!-- /bench:doubling -->\nafter\n")
    row = row_of(measured, "seed_fast")
    assert f"| seed_fast | {row['wall_ms']['median']:.3g} ms ({row['speedup']:.3g}x) |" in text
    assert "- absent: not installed" in text
    assert "- wrong: wrong: got [3.0, 6.0, 9.0, 12.0]" in text
    assert "- seed_fast: exact (N=4)" in text
    assert "old" not in text


def test_memory_has_a_column_where_it_was_measured(measured):
    assert "extra memory" not in report.block("doubling", [measured], *PLACE)
    row_of(measured, "seed_fast")["peak_bytes"] = 3 << 20
    text = report.block("doubling", [measured], *PLACE)
    assert "| provider | N=4 | extra memory |" in text
    assert "x) | 3 MiB |" in text


def test_numbers_have_three_digits_and_no_exponent():
    assert [tables.number(x) for x in (0.012345, 1.5, 999.4, 20412.0)] == ["0.0123", "1.5", "999", "20400"]


def test_provenance_stands_with_the_tables_of_each_machine(measured, second):
    made = measured["provenance"]
    made |= {"cpu_capability": "AVX512", "instruction_limits": {}}
    text = report.block("doubling", [measured, second], *PLACE)
    first_table, second_table = text.split("**doubling, float32, box-avx2**")
    for part, runs_on in ((first_table, "AVX512"), (second_table, "AVX2")):
        assert f"{made['cpu']} (" in part
        assert "2 threads" in part
        assert f"load {made['load_before']} before the run" in part
        assert f"commit {made['commit']}" in part
        assert f"torch {made['torch']} on {runs_on}" in part
    assert "held to fewer instruction sets by ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2" in second_table
    assert "held to fewer" not in first_table


def test_files_of_older_runs_do_without_what_hides_instruction_sets(measured):
    del measured["provenance"]["instruction_limits"], measured["provenance"]["cpu_capability"]
    assert f"torch {measured['provenance']['torch']}; load" in report.block("doubling", [measured], *PLACE)
    assert "instruction_limits" not in report.block("machines", [measured], *PLACE)
    assert measured["provenance"]["torch"] in tables.text(measured)


def test_bars_have_a_column_per_machine_and_none_is_dropped(measured, second):
    bars = report.block("bars", [measured, second], *PLACE)
    header, _, *lines = bars.splitlines()
    assert header.endswith(f"| {measured['provenance']['machine']} | box-avx2 |")
    assert len(lines) == len(measured["bars"])
    ours, loop = (tables.number(row_of(measured, name)["wall_ms"]["median"]) for name in ("seed_fast", "loop"))
    assert f"3, reached ({ours} ms, loop: {loop} ms) |" in lines[0]
    assert bars.count("| not measured | not measured |") == 2


def test_machines_have_a_column_per_results_file(measured, second):
    measured["provenance"]["instruction_limits"] = {}
    second["provenance"]["machine"] = measured["provenance"]["machine"]
    machines = report.block("machines", [measured, second], *PLACE)
    assert "| what | doubling | doubling |" in machines
    assert measured["provenance"]["torch"] in machines
    assert "| cpu, copy_gb_per_s | 10 | 10 |" in machines
    assert "| instruction_limits | none | ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 |" in machines


def test_the_readme_has_at_most_eight_rows_with_the_ratio_of_the_rounds(measured, second, monkeypatch):
    line = tables.Headline("twice", "doubling", "N=4", "seed_fast", "loop")
    elsewhere = tables.Headline("thrice", "trebling", "N=4", "seed_fast", "loop")
    monkeypatch.setattr(tables, "HEADLINES", (line, elsewhere))
    text = report.block("readme", [measured, second], *PLACE)
    row = row_of(measured, "seed_fast")
    times = [tables.number(row_of(measured, name)["wall_ms"]["median"]) for name in ("seed_fast", "loop")]
    cell = f"{times[0]} ms against {times[1]} ms: {tables.number(row['speedup'])}x"
    assert f"| twice | N=4 | loop | {cell} | {cell} |" in text
    assert "| thrice | N=4 | loop | not measured | not measured |" in text
    assert "held to fewer instruction sets by ATEN_CPU_CAPABILITY=avx2" in text


def test_headlines_are_few_and_name_what_there_is():
    assert len(tables.HEADLINES) <= 8
    for line in tables.HEADLINES:
        benchmark = catalog.BENCHMARKS[line.op]
        assert benchmark.case(line.case)
        assert benchmark.provider(line.fast).ours
        assert not benchmark.provider(line.slow).ours


def test_no_results_yet_is_said(measured):
    assert report.block("doubling", [], *PLACE) == report.NOTHING
    assert report.block("trebling", [measured], ("trebling",), *PLACE[1:]) == report.NOTHING


def test_an_unknown_block_is_refused():
    with pytest.raises(ValueError, match=r"bench:trebling: a block must be one of doubling, readme, bars, machines"):
        report.refreshed("<!-- bench:trebling -->\n<!-- /bench:trebling -->", [], *PLACE)


def test_check_fails_on_a_stale_document_until_it_is_rewritten(measured, tmp_path, monkeypatch):
    monkeypatch.setitem(catalog.BENCHMARKS, "doubling", catalog.BENCHMARKS["attention"])
    folder, document, drawn = tmp_path / "results", tmp_path / "README.md", tmp_path / "figures"
    results.save(measured, folder / "machine.json")
    document.write_text(DOCUMENT)
    where = ["--results", str(folder), "--documents", str(document), "--figures", str(drawn)]
    pytest.importorskip("matplotlib")
    assert report.main([*where, "--check"]) == 1
    assert document.read_text() == DOCUMENT
    assert report.main(where) == 0
    assert report.main([*where, "--check"]) == 0
    assert [path.suffix for path in drawn.iterdir()] == [".svg"]
    assert f"](figures/{next(drawn.iterdir()).name})" in document.read_text()


def test_the_same_results_draw_the_same_figure(measured, tmp_path):
    pytest.importorskip("matplotlib")
    first = figures.draw(measured, "doubling", tmp_path / "a").read_bytes()
    assert first == figures.draw(measured, "doubling", tmp_path / "b").read_bytes()
    assert b"<svg" in first


def test_categories_are_bars_and_a_line_goes_along_numbers_only(measured):
    pytest.importorskip("matplotlib")
    rows = [row for row in measured["rows"] if row["status"] == "ok"]
    panel = figures._bars(rows).axes[0]
    assert len(panel.patches) == len(rows)
    sizes = [copy.deepcopy(row) for row in rows for _ in range(3)]
    for index, row in enumerate(sizes):
        row["shape"] = {"N": 4 ** (1 + index % 3)}
    panel = figures._curves(sizes).axes[0]
    assert panel.get_xlabel() == "vectors per call"
    assert [len(line.get_xdata()) for line in panel.lines] == [3] * len(rows)
    assert {text.get_text() for text in panel.texts} == {row["provider"] for row in rows}


def test_every_provider_has_one_colour_that_no_other_has():
    rows = {
        provider.name: {"provider": provider.name, "ours": provider.ours}
        for benchmark in catalog.BENCHMARKS.values()
        for provider in benchmark.providers
    }
    assert len({figures.colour_of(row) for row in rows.values()}) == len(rows)


def test_documents_of_the_repository_are_fresh():
    assert report.main(["--check"]) == 0
