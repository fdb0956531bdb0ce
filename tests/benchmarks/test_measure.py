"""Measuring: who is timed, who is refused, and what a row says."""

from __future__ import annotations

import dataclasses
import json
import sys
import time

import pytest
import torch

from benchmarks import measure, memory, results, run, timing
from benchmarks.catalog import GROUPS
from benchmarks.ops import nearest_code, vector_quantize
from benchmarks.providers import Provider, environment
from seed_fast.cli.bench import BenchOptions

OPS = GROUPS["ops"]


def rows(measured):
    return {row["provider"]: row for row in measured["rows"]}


def test_results_follow_the_schema_and_survive_a_round_trip(measured, tmp_path):
    results.validate(measured)
    results.save(measured, tmp_path / "machine.json")
    loaded = results.load(tmp_path / "machine.json")
    assert [results.key(row) for row in loaded["rows"]] == [results.key(row) for row in measured["rows"]]
    assert results.dump(loaded) == (tmp_path / "machine.json").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["machine.json"]


def test_right_providers_are_timed_in_the_same_rounds(measured):
    ours, loop = rows(measured)["seed_fast"], rows(measured)["loop"]
    assert ours["status"] == loop["status"] == "ok"
    assert ours["rounds"] == loop["rounds"] >= timing.MINIMUM_ROUNDS
    assert 0 < ours["wall_ms"]["q20"] <= ours["wall_ms"]["median"] <= ours["wall_ms"]["q80"]
    assert loop["speedup"] == 1
    assert ours["note"] == "exact"
    assert ours["device_ms"] is None


def test_a_wrong_provider_is_refused_and_says_why(measured):
    row = rows(measured)["wrong"]
    assert row["status"] == "wrong: got [3.0, 6.0, 9.0, 12.0]"
    assert row["wall_ms"] is None
    assert row["speedup"] is None


def test_what_cannot_run_is_shown_with_its_reason(measured):
    assert rows(measured)["absent"]["status"] == "not installed"
    assert rows(measured)["elsewhere"]["status"] == "needs a quantum computer"
    assert rows(measured)["crashing"]["status"] == "failed: KeyError: 'missing'"


def test_bars_are_computed_from_the_rounds_and_none_is_dropped(measured):
    bars = {bar["name"]: bar for bar in measured["bars"]}
    assert len(bars) == 4
    assert bars["ahead of the loop"]["state"] == "reached"
    assert bars["ahead of the loop"]["slow"] == "loop"
    assert bars["ahead of the loop"]["ratio"] == rows(measured)["seed_fast"]["speedup"]
    assert bars["a million times the loop"]["state"] == "not reached"
    assert bars["ahead of what is not there"]["state"] == bars["on a GPU"]["state"] == "not measured"


def test_shares_are_of_the_ceilings_of_the_run(measured):
    row = rows(measured)["seed_fast"]
    per_second = 1000 / row["wall_ms"]["median"]
    assert row["gemm_share"] == pytest.approx(4 * per_second / 100e9)
    assert row["copy_share"] == pytest.approx(32 * per_second / 10e9)


def test_only_a_wrong_or_failing_provider_of_ours_fails_the_run(measured, doubling):
    assert measure.broken(measured) == []
    ours = Provider("seed_fast", doubling.provider("wrong").prepare, ours=True)
    case, device = doubling.case("N=4"), "cpu"
    inputs = doubling.inputs(case, device, 0)
    status, _, _ = measure.start(doubling, case, device, ours, inputs, doubling.truth(inputs, case))
    rows(measured)["seed_fast"]["status"] = status
    assert measure.broken(measured) == ["doubling N=4 seed_fast on cpu: wrong: got [3.0, 6.0, 9.0, 12.0]"]


def test_what_compiles_for_too_long_says_so_and_is_not_tried_again(doubling, monkeypatch):
    monkeypatch.setattr(measure, "QUICK_SECONDS_PER_CASE", 0.0)
    tried = []

    def compiles(inputs, case):
        tried.append(case.name)
        time.sleep(5)

    stuck = Provider("stuck", compiles, compile_limit=0.02)
    small = dataclasses.replace(doubling.cases[1], name="N=8", shape={"N": 8}, quick=True)
    slow = dataclasses.replace(doubling, cases=(doubling.cases[0], small), providers=(*doubling.providers, stuck))
    measured = measure.measure([slow], quick=True, devices=("cpu",))
    says = [row["status"] for row in measured["rows"] if row["provider"] == "stuck"]
    assert says == ["compile: more than 0.02 s", "compile: more than 0.02 s with N=4"]
    assert tried == ["N=4"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_memory_is_measured_in_this_process_where_the_benchmark_says_so(doubling, monkeypatch):
    size = 1 << 26
    allocates = Provider("allocating", lambda inputs, case: lambda: (torch.ones(size).sum(), 2 * inputs["x"])[1])
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: pytest.fail("in another process"))
    monkeypatch.setattr(measure, "SECONDS_PER_CASE", 0.0)
    here = dataclasses.replace(doubling, providers=(allocates,), memory="call here", memory_cases=("N=4",))
    rows, _ = measure.measure_case(here, here.case("N=4"), "cpu", 1, quick=False)
    assert 0.99 * 4 * size <= rows[0]["peak_bytes"] < 1.5 * 4 * size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(schema=0), "schema must be 1, got 0"),
        (lambda r: r["rows"][0].pop("note"), r"rows\[0\] must have exactly the fields"),
        (lambda r: r["rows"][0].update(threads="2"), r"rows\[0\].threads has the wrong type, got '2'"),
        (lambda r: r["rows"][0].update(wall_ms=None), r"rows\[0\] must have times exactly where its status is ok"),
        (lambda r: r["rows"][0]["wall_ms"].pop("q80"), r"wall_ms must hold median, q20 and q80"),
        (lambda r: r["rows"].append(r["rows"][0]), "every row must be there once"),
        (lambda r: r["bars"][0].update(state="nearly"), "state must be one of reached"),
    ],
)
def test_results_of_another_shape_are_refused_by_name(measured, change, message):
    change(measured)
    with pytest.raises(ValueError, match=message):
        results.validate(measured)


def test_provenance_records_what_hides_instruction_sets(monkeypatch):
    for name in results.INSTRUCTION_LIMITS:
        monkeypatch.delenv(name, raising=False)
    made = results.provenance(2)
    assert made["instruction_limits"] == {}
    assert made["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert results.provenance(2)["instruction_limits"] == {"ONEDNN_MAX_CPU_ISA": "AVX2"}


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "half.json").write_text('{"schema": 1, ')
    with pytest.raises(ValueError, match=r"half\.json"):
        results.load(tmp_path / "half.json")


def test_every_op_has_a_benchmark():
    assert set(OPS) == {path.stem for path in (results.ROOT / "seed_fast" / "ops").glob("[!_]*.py")}


def test_every_op_has_consistent_names():
    for op, benchmark in OPS.items():
        assert benchmark.op == op
        names = [provider.name for provider in benchmark.providers]
        assert len(set(names)) == len(names)
        assert len({case.name for case in benchmark.cases}) == len(benchmark.cases)
        assert {bar.case for bar in benchmark.bars} <= {case.name for case in benchmark.cases}
        assert {name for bar in benchmark.bars for name in (bar.fast, *bar.slow)} | {benchmark.baseline} <= set(names)
        assert set(benchmark.memory_cases) <= {case.name for case in benchmark.cases}
        for bar in benchmark.bars:
            assert bar.device in benchmark.case(bar.case).devices


@pytest.mark.parametrize("op", sorted(OPS))
def test_the_baseline_and_ours_pass_their_own_check(op):
    benchmark = OPS[op]
    case = next(case for case in benchmark.cases if case.quick)
    inputs = benchmark.inputs(case, "cpu", 0)
    truth = benchmark.truth(inputs, case)
    for name in ("seed_fast", benchmark.baseline):
        provider = benchmark.provider(name)
        call = provider.start(inputs, case, "cpu")
        assert benchmark.check(case, provider, call(), inputs, truth)[0] == ""


def test_nearest_code_excuses_a_peer_within_rounding_and_never_us():
    case = nearest_code.BENCHMARK.case("N=32")
    codebook = torch.randn(8192, 32, generator=torch.Generator().manual_seed(1))
    codebook[8191] = codebook[5] * (1 + 2**-23)
    inputs = {"z": codebook[:32].clone(), "codebook": codebook}
    truth = torch.arange(32)
    near, far = truth.clone(), truth.clone()
    near[5], far[5] = 8191, 6
    peer, ours = (nearest_code.BENCHMARK.provider(name) for name in (nearest_code.OFFICIAL, "seed_fast"))
    wrong, note = nearest_code.check(case, peer, near, inputs, truth)
    assert (wrong, note) == ("", "1 of 32 ids differ from float64, within its rounding")
    assert nearest_code.check(case, peer, far, inputs, truth)[0] == "1 of 32 ids beyond rounding"
    assert nearest_code.check(case, ours, near, inputs, truth)[0] == "1 of 32 ids differ from float64"
    assert "outside" in nearest_code.check(case, peer, torch.full((32,), -1), inputs, truth)[0]


def test_vector_quantize_refuses_a_gradient_that_is_off():
    benchmark = vector_quantize.BENCHMARK
    case = benchmark.case("N=256")
    inputs = benchmark.inputs(case, "cpu", 0)
    truth = benchmark.truth(inputs, case)
    output = [x.clone() for x in truth]
    assert benchmark.check(case, benchmark.provider("seed_fast"), output, inputs, truth) == ("", "")
    output[3] *= 1.001
    assert "gradient of codebook" in benchmark.check(case, benchmark.provider("seed_fast"), output, inputs, truth)[0]


def test_an_instruction_set_that_is_hidden_from_the_run_is_not_measured(monkeypatch):
    benchmark = nearest_code.BENCHMARK
    case = benchmark.case("N=32")
    monkeypatch.setenv("SEED_FAST_CPU_ISA", "avx2")
    assert benchmark.provider("seed_fast, avx512").unsuited(case) == "hidden from this run by SEED_FAST_CPU_ISA=avx2"
    assert benchmark.provider("seed_fast, avx2").unsuited(case) == ""
    assert benchmark.provider("seed_fast, scalar").unsuited(case) == ""
    monkeypatch.delenv("SEED_FAST_CPU_ISA")
    assert benchmark.provider("seed_fast, avx512").unsuited(case) == ""


def test_environment_is_set_inside_and_restored_outside(monkeypatch):
    monkeypatch.setenv("SEED_FAST_A", "before")
    monkeypatch.delenv("SEED_FAST_B", raising=False)
    import os

    with environment({"SEED_FAST_A": "1", "SEED_FAST_B": "2"}):
        assert (os.environ["SEED_FAST_A"], os.environ["SEED_FAST_B"]) == ("1", "2")
    assert os.environ["SEED_FAST_A"] == "before"
    assert "SEED_FAST_B" not in os.environ


def test_quick_run_of_a_real_op_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "QUICK_SECONDS_PER_CASE", 0.0)
    path = tmp_path / "out.json"
    assert run.bench(BenchOptions(what="nearest_code", quick=True, as_json=True, output=path)) == 0
    printed = json.loads(capsys.readouterr().out)
    saved = results.load(path)
    assert printed["rows"] == saved["rows"]
    assert {row["provider"] for row in saved["rows"]} == {p.name for p in nearest_code.BENCHMARK.providers}
    assert all(row["status"] != "" for row in saved["rows"])
    assert rows(saved)["seed_fast"]["status"] == "ok"
