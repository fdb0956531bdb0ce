"""Check and time every provider on every case. What comes back has the schema of `benchmarks.results`.

Each provider's output is compared with the float64 truth first, and a wrong one is not timed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import memory, results, timing
from benchmarks.providers import (
    Bar,
    Benchmark,
    Call,
    Case,
    Provider,
    Unavailable,
    close,
    environment,
    forget_compiled,
)
from seed_fast.ops import BackendError

SECONDS_PER_CASE, QUICK_SECONDS_PER_CASE = 4.0, 0.3
COMPILE = "compile:"  # the status of a provider that was stopped while it compiled begins with this
# Words in the names of providers that start for longer than everything else takes: left out of the quick run.
SLOW_TO_START = ("compile", "FlexAttention", "DataLoader")
Samples = dict[str, dict[str, list[float]]]  # metric -> provider -> one number per round


def measure(
    benchmarks: Iterable[Benchmark],
    *,
    threads: int = 2,
    quick: bool = False,
    full: bool = False,
    devices: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measure all cases of some benchmarks on this machine.

    Args:
        benchmarks: what to measure.
        threads: CPU threads that every provider gets.
        quick: whether to take the few small cases only, in a fraction of the time and without memory.
        full: whether to take the cases that need minutes too.
        devices: device types; default: "cpu", and "cuda" where there is one.

    Returns:
        Results in the schema of `benchmarks.results`. `bars` holds those that belong to the cases that ran.
    """
    devices = devices or (("cpu", "cuda") if torch.cuda.is_available() else ("cpu",))
    benchmarks = list(benchmarks)
    rows: list[dict[str, Any]] = []
    bars: list[dict[str, Any]] = []
    given_up: dict[tuple[str, str], str] = {}
    # First of all, so that the load it records is not our own.
    provenance = {**results.provenance(threads), "quick": quick}
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ceilings = {device: timing.ceilings(device, quick) for device in devices}
        work = [
            (benchmark, device, case)
            for benchmark in benchmarks
            for device in devices
            for case in benchmark.cases
            if device in case.devices and (case.quick or not quick) and (full or not case.full)
        ]
        for benchmark, device, case in tqdm(work, disable=None, unit="case"):
            case_rows, case_bars = measure_case(benchmark, case, device, threads, quick, given_up)
            rows += case_rows
            bars += case_bars
            if not sys.stderr.isatty():
                print(f"{benchmark.op} {case.name} {case.dtype} on {device}: {_headline(case_rows)}", file=sys.stderr)
        # The ceilings once more, and the higher counts: one that was met in a noisy moment is none.
        for device in devices:
            again = timing.ceilings(device, quick)
            ceilings[device] = {name: max(rate, again[name]) for name, rate in ceilings[device].items()}
    finally:
        torch.set_num_threads(threads_before)
    # Shares of the ceilings, and the bars that speak of them, need the ceilings of the whole run.
    dtypes = {
        (benchmark.op, provider.name): provider.dtype for benchmark in benchmarks for provider in benchmark.providers
    }
    for row in rows:
        _add_shares(row, dtypes[row["op"], row["provider"]] or row["dtype"], ceilings[row["device"]])
    judge_shares(rows, bars)
    return {"schema": results.SCHEMA, "provenance": provenance, "ceilings": ceilings, "rows": rows, "bars": bars}


def _headline(rows: list[dict[str, Any]]) -> str:
    parts = [f"{row['provider']} {row['wall_ms']['median']:.3g} ms" for row in rows if row["status"] == "ok"]
    return ", ".join([*parts, f"{len(rows) - len(parts)} did not run"])


def measure_case(
    benchmark: Benchmark,
    case: Case,
    device: str,
    threads: int,
    quick: bool,
    given_up: dict[tuple[str, str], str] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure all providers of a benchmark on one case.

    Args:
        benchmark, case, device, threads: what to measure and where.
        quick: whether to be done in a fraction of a second, without memory.
        given_up: (op, provider) -> the status of its rows from now on, for those that compiled for too long. This
            function adds to it.

    Returns:
        (one row per provider, without shares of the ceilings; the bars of this case).
    """
    given_up = {} if given_up is None else given_up
    forget_compiled()
    inputs = benchmark.inputs(case, device, 0)
    truth = benchmark.truth(inputs, case)
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Call] = {}
    # Every provider runs once, and those whose output is right are kept.
    for provider in benchmark.providers:
        row = rows[provider.name] = _row(benchmark, case, device, threads, provider)
        if quick and any(word in provider.name for word in SLOW_TO_START):
            row["status"] = "left out of the quick run"
            continue
        if reason := given_up.get((benchmark.op, provider.name)):
            row["status"] = reason
            continue
        row["status"], row["note"], call = start(benchmark, case, device, provider, inputs, truth)
        if row["status"].startswith(COMPILE):
            given_up[benchmark.op, provider.name] = f"{row['status']} with {case.name}"
        if row["status"] == "ok" and call is not None:
            calls[provider.name] = call
        else:
            close(call)
    # Then they are timed together, in interleaved rounds.
    samples = _time(benchmark, case, device, rows, inputs, calls, QUICK_SECONDS_PER_CASE if quick else SECONDS_PER_CASE)
    for call in calls.values():
        close(call)
    for name in calls:
        _fill(rows[name], samples, benchmark.baseline)
    # Then the memory of each, if this is a case where it is measured.
    if case.name in benchmark.memory_cases and not quick:
        for name, call in calls.items():
            provider = benchmark.provider(name)
            # A provider that is held to an instruction set or a backend is one of the others with a setting.
            if not provider.environment:
                rows[name]["peak_bytes"] = memory.measured(benchmark, case, provider, device, threads, call)
    samples["memory"] = {name: [row["peak_bytes"]] for name, row in rows.items() if row["peak_bytes"]}
    bars = [
        judge(benchmark, bar, samples)
        for bar in benchmark.bars
        if (bar.case, bar.device, bar.threads) == (case.name, device, threads)
    ]
    return list(rows.values()), bars


def _row(benchmark: Benchmark, case: Case, device: str, threads: int, provider: Provider) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(results.ROW)
    return row | {
        "op": benchmark.op,
        "case": case.name,
        "shape": dict(case.shape),
        "dtype": case.dtype,
        "device": device,
        "threads": threads,
        "provider": provider.name,
        "ours": provider.ours,
        "note": "",
        "rounds": 0,
        "flops": benchmark.flops(case),
        "bytes": benchmark.bytes(case),
    }


def start(
    benchmark: Benchmark, case: Case, device: str, provider: Provider, inputs: Any, truth: Any
) -> tuple[str, str, Call | None]:
    """Prepare a provider, call it once, and compare its output with the truth.

    Returns:
        (status, note, call): the status is "ok" where the output was right, otherwise it says why the provider is not
        timed. The call is None where there is none; otherwise it is to be closed.
    """
    call = None
    try:
        with timing.limit(provider.compile_limit):
            call = provider.start(inputs, case, device)
            with environment(provider.environment):
                output = call()
        wrong, note = benchmark.check(case, provider, output, inputs, truth)
    except timing.TooLong:
        forget_compiled()
        return f"{COMPILE} more than {provider.compile_limit:g} s", "", None
    except (Unavailable, BackendError) as reason:  # a forced backend that does not take this case says so
        return str(reason), "", call
    except Exception as error:  # noqa: BLE001 - a peer may raise anything; the row says what, and the run goes on
        lines = str(error).strip().splitlines() or [""]
        return f"failed: {type(error).__name__}: {lines[0]}"[:300], "", call
    return (f"wrong: {wrong}" if wrong else "ok"), note, call


def _time(
    benchmark: Benchmark,
    case: Case,
    device: str,
    rows: dict[str, dict[str, Any]],
    inputs: dict[str, torch.Tensor],
    calls: dict[str, Call],
    budget: float,
) -> Samples:
    """Time all calls within `budget` seconds: {"wall": {provider: seconds per round}, "device": the same on a GPU}."""
    environments = {name: benchmark.provider(name).environment for name in calls}
    if device == "cpu":
        return {"wall": timing.interleave(calls, budget, environments, case.rounds), "device": {}}
    # On a GPU every call rotates through copies of the inputs, so that none is in the L2 cache when its turn comes.
    copies = [inputs] + [
        {name: x.detach().clone().requires_grad_(x.requires_grad) for name, x in inputs.items()}
        for _ in range(timing.cuda_copies(benchmark.bytes(case)) - 1)
    ]
    walls: dict[str, Any] = {}
    graphs: dict[str, timing.CudaGraph] = {}
    for name, call in calls.items():
        if hasattr(call, "seconds"):  # it times itself, and is more than a graph could hold
            walls[name] = call
            continue
        provider = benchmark.provider(name)
        rotated = [provider.start(copy, case, device) for copy in copies]
        walls[name] = timing.CudaWall(rotated)
        with environment(provider.environment):
            walls[name].seconds(1)
            try:
                graphs[name] = timing.CudaGraph(rotated)
            except Unavailable as reason:
                rows[name]["note"] = "; ".join(filter(None, [rows[name]["note"], str(reason)]))
    return {
        "wall": timing.interleave(walls, budget / 2, environments, case.rounds),
        "device": timing.interleave(graphs, budget / 2, environments, case.rounds),
    }


def _fill(row: dict[str, Any], samples: Samples, baseline: str) -> None:
    """Write a provider's times into its row."""
    name = row["provider"]
    wall, on_device = samples["wall"][name], samples["device"].get(name)
    row["wall_ms"] = timing.quantiles([1000 * s for s in wall])
    row["device_ms"] = timing.quantiles([1000 * s for s in on_device]) if on_device else None
    row["rounds"] = len(wall)
    if baseline in samples["wall"]:
        row["speedup"] = timing.ratio(samples["wall"][baseline], wall)


def _add_shares(row: dict[str, Any], dtype: str, ceilings: dict[str, float]) -> None:
    """Write into a row which share of the machine's ceilings it reached; `dtype` is that of its matrix products."""
    if row["status"] != "ok":
        return
    busy = (row["device_ms"] or row["wall_ms"])["median"] / 1000
    peak = ceilings.get(f"gemm_{dtype}_gflops")
    row["gemm_share"] = row["flops"] / busy / 1e9 / peak if peak else None
    row["copy_share"] = row["bytes"] / busy / 1e9 / ceilings["copy_gb_per_s"]


def judge_shares(rows: list[dict[str, Any]], bars: list[dict[str, Any]]) -> None:
    """Judge the bars on shares of the GEMM ceiling, which is known only at the end of a run."""
    shares = {(row["op"], row["case"], row["device"], row["provider"]): row["gemm_share"] for row in rows}
    for bar in bars:
        share = shares.get((bar["op"], bar["case"], bar["device"], bar["fast"]))
        if bar["metric"] == "gemm" and share is not None:
            bar |= {"ratio": share, "state": "reached" if share >= bar["target"] else "not reached"}


def judge(benchmark: Benchmark, bar: Bar, samples: Samples) -> dict[str, Any]:
    """The bar as an entry of the results: its ratio to the fastest peer that ran, and whether that reaches the target.

    Args:
        samples: metric -> provider -> samples; {} gives "not measured".
    """
    of_metric = samples.get(bar.metric, {})
    ratios = {
        name: timing.ratio(of_metric[name], of_metric[bar.fast])
        for name in bar.slow
        if name in of_metric and bar.fast in of_metric
    }
    slow = min(ratios, key=ratios.__getitem__, default=None)
    ratio = ratios[slow] if slow else None
    state = "not measured" if ratio is None else ("reached" if ratio >= bar.target else "not reached")
    return {
        "op": benchmark.op, "name": bar.name, "case": bar.case, "fast": bar.fast, "slow": slow, "metric": bar.metric,
        "device": bar.device, "target": bar.target, "ratio": ratio, "state": state,
    }  # fmt: skip


def unmeasured_bars(benchmarks: Iterable[Benchmark], bars: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bars that a run had no case, device or thread count for, so that none is dropped from its results.

    Args:
        benchmarks: what the run was asked to measure.
        bars: those that it has judged.
    """
    judged = {(bar["op"], bar["name"], bar["case"], bar["device"]) for bar in bars}
    return [
        judge(benchmark, bar, {})
        for benchmark in benchmarks
        for bar in benchmark.bars
        if (benchmark.op, bar.name, bar.case, bar.device) not in judged
    ]


def broken(measured: dict[str, Any]) -> list[str]:
    """One line per row of seed_fast itself that is wrong or failed; a run with any exits non-zero."""
    return [
        f"{row['op']} {row['case']} {row['provider']} on {row['device']}: {row['status']}"
        for row in measured["rows"]
        if row["ours"] and row["status"].startswith(("wrong", "failed"))
    ]
