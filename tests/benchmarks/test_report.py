"""Tables and plots come from results files, and a stale document is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import report, results

PLACE = (("doubling",), Path("/repo"), Path("/repo/docs/figures"))
DOCUMENT = "before\n<!-- bench:doubling -->\nold\n<!-- /bench:doubling -->\nafter\n"


def test_the_table_shows_times_speedups_and_who_did_not_run(found):
    text = report.refreshed(DOCUMENT, [found], *PLACE)
    assert text.startswith("before\n<!-- bench:doubling -->\n")
    assert text.endswith("<!-- /bench:doubling -->\nafter\n")
    row = next(row for row in found["rows"] if row["ours"])
    assert f"| seed_fast | {row['wall_ms']['median']:.3g} ms ({row['speedup']:.3g}x) |" in text
    assert "- absent: not installed" in text
    assert "- wrong: wrong: got [3.0, 6.0, 9.0, 12.0]" in text
    assert "old" not in text


def test_bars_and_machines_have_blocks_of_their_own(found):
    bars = report.block("bars", [found], *PLACE)
    assert bars.count("not measured") == 2
    assert "ahead of the loop (against loop)" in bars
    machines = report.block("machines", [found], *PLACE)
    assert found["provenance"]["torch"] in machines
    assert "| cpu, copy_gb_per_s | 10 |" in machines


def test_the_summary_holds_what_was_measured_and_counts_the_rest(found):
    summary = report.block("summary", [found], *PLACE)
    ours, loop = (next(row for row in found["rows"] if row["provider"] == name) for name in ("seed_fast", "loop"))
    assert f"| seed_fast: {ours['wall_ms']['median']:.3g} ms | loop: {loop['wall_ms']['median']:.3g} ms |" in summary
    assert "Not measured on this machine: 2 of 4 claims." in summary
    assert f"torch {found['provenance']['torch']}" in summary


def test_what_hides_instruction_sets_stands_with_the_machine_and_old_files_do_without(found):
    found["provenance"]["instruction_limits"] = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    machines = report.block("machines", [found], *PLACE)
    assert "| instruction_limits | ATEN_CPU_CAPABILITY=avx2, ONEDNN_MAX_CPU_ISA=AVX2 |" in machines
    del found["provenance"]["instruction_limits"], found["provenance"]["cpu_capability"]
    assert "instruction_limits" not in report.block("machines", [found], *PLACE)


def test_no_results_yet_is_said():
    assert report.block("doubling", [], *PLACE) == report.NOTHING


def test_an_unknown_block_is_refused():
    with pytest.raises(ValueError, match=r"bench:trebling: a block must be one of doubling, summary, bars, machines"):
        report.refreshed("<!-- bench:trebling -->\n<!-- /bench:trebling -->", [], *PLACE)


def test_check_fails_on_a_stale_document_until_it_is_rewritten(found, tmp_path, monkeypatch):
    from benchmarks import ops

    monkeypatch.setattr(ops, "BENCHMARKS", {"doubling": None})
    folder, document, figures = tmp_path / "results", tmp_path / "README.md", tmp_path / "figures"
    results.save(found, folder / "machine.json")
    document.write_text(DOCUMENT)
    where = ["--results", str(folder), "--documents", str(document), "--figures", str(figures)]
    pytest.importorskip("matplotlib")
    assert report.main([*where, "--check"]) == 1
    assert document.read_text() == DOCUMENT
    assert report.main(where) == 0
    assert report.main([*where, "--check"]) == 0
    assert [path.suffix for path in figures.iterdir()] == [".svg"]
    assert f"](figures/{next(figures.iterdir()).name})" in document.read_text()


def test_the_same_results_draw_the_same_plot(found, tmp_path):
    pytest.importorskip("matplotlib")
    first = report.draw(found, "doubling", tmp_path / "a").read_bytes()
    assert first == report.draw(found, "doubling", tmp_path / "b").read_bytes()
    assert b"<svg" in first


def test_documents_of_the_repository_are_fresh():
    assert report.main(["--check"]) == 0
