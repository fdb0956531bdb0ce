"""Check and time every provider of every op that this machine can run: `seed-fast bench ops`; or `e2e`, of the model.

Each provider's output is compared with the float64 truth first, and a wrong one is not timed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import memory, results, timing
from benchmarks.providers import Bar, Benchmark, Call, Case, Provider, Unavailable, environment, forget_compiled
from seed_fast.ops import BackendError

SECONDS_PER_CASE, QUICK_SECONDS_PER_CASE = 4.0, 0.3
COMPILE = "compile:"  # what the status of one that was stopped begins with
# Left out of the quick run: what starts for longer than everything else takes.
SLOW_TO_START = ("compile", "FlexAttention", "DataLoader")


def run(
    benchmarks: Iterable[Benchmark],
    *,
    threads: int = 2,
    quick: bool = False,
    full: bool = False,
    devices: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Results, in the schema of `benchmarks.results`, of all cases (quick: a few small ones, without memory).

    Cases that take minutes come only with `full`.
    """
    devices = devices or (("cpu", "cuda") if torch.cuda.is_available() else ("cpu",))
    found = {
        "schema": results.SCHEMA,
        "provenance": {**results.provenance(threads), "quick": quick},
        "ceilings": {},
        "rows": [],
        "bars": [],
    }
    before, given_up = torch.get_num_threads(), {}
    torch.set_num_threads(threads)
    try:
        found["ceilings"] = {device: timing.ceilings(device, quick) for device in devices}
        work = [
            (benchmark, device, case)
            for benchmark in benchmarks
            for device in devices
            for case in benchmark.cases
            if device in case.devices and (case.quick or not quick) and (full or not case.full)
        ]
        for benchmark, device, case in tqdm(work, disable=None, unit="case"):
            rows, bars = run_case(benchmark, case, device, threads, quick, given_up)
            found["rows"] += rows
            found["bars"] += bars
            if not sys.stderr.isatty():
                print(f"{benchmark.op} {case.name} {case.dtype} on {device}: {_headline(rows)}", file=sys.stderr)
        for device in devices:  # again, and the higher counts: a ceiling met in a noisy moment is none
            again = timing.ceilings(device, quick)
            found["ceilings"][device] = {n: max(v, again[n]) for n, v in found["ceilings"][device].items()}
    finally:
        torch.set_num_threads(before)
    dtypes = {
        (benchmark.op, provider.name): provider.dtype for benchmark in benchmarks for provider in benchmark.providers
    }
    for row in found["rows"]:
        _add_shares(row, dtypes[row["op"], row["provider"]] or row["dtype"], found["ceilings"][row["device"]])
    _judge_shares(found)
    return found


def _headline(rows: list[dict[str, Any]]) -> str:
    parts = [f"{row['provider']} {row['wall_ms']['median']:.3g} ms" for row in rows if row["status"] == "ok"]
    return ", ".join([*parts, f"{len(rows) - len(parts)} did not run"])


def run_case(
    benchmark: Benchmark,
    case: Case,
    device: str,
    threads: int,
    quick: bool,
    given_up: dict[tuple[str, str], str] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(one row per provider, without shares; the bars of this case).

    `given_up` collects the (op, provider) that compiled for too long, and what their rows say from then on.
    """
    given_up = {} if given_up is None else given_up
    forget_compiled()
    inputs = benchmark.inputs(case, device, 0)
    truth = benchmark.truth(inputs, case)
    rows, calls = {}, {}
    for provider in benchmark.providers:
        row = rows[provider.name] = _row(benchmark, case, device, threads, provider)
        if quick and any(word in provider.name for word in SLOW_TO_START):
            row["status"] = "left out of the quick run"
            continue
        if reason := given_up.get((benchmark.op, provider.name)):
            row["status"] = reason
            continue
        row["status"], row["note"], call = _start(benchmark, case, device, provider, inputs, truth)
        if row["status"].startswith(COMPILE):
            given_up[benchmark.op, provider.name] = f"{row['status']} with {case.name}"
        if row["status"] == "ok":
            calls[provider.name] = call
        elif hasattr(call, "close"):
            call.close()
    samples = _time(benchmark, case, device, rows, inputs, calls, QUICK_SECONDS_PER_CASE if quick else SECONDS_PER_CASE)
    for call in calls.values():
        if hasattr(call, "close"):
            call.close()
    for name, call in calls.items():
        row = rows[name]
        _fill(row, samples, benchmark.baseline)
        provider = benchmark.provider(name)
        # A provider held to an instruction set or a backend is one of the others with a setting.
        if case.name in benchmark.memory_cases and not quick and not provider.environment:
            here = benchmark.memory_here and device == "cpu"
            row["peak_bytes"] = (
                memory.measure_here(call) if here else memory.measure(benchmark, case, provider, device, threads)
            )
    samples["memory"] = {name: [row["peak_bytes"]] for name, row in rows.items() if row["peak_bytes"]}
    bars = [
        _bar(benchmark, bar, samples)
        for bar in benchmark.bars
        if (bar.case, bar.device, bar.threads) == (case.name, device, threads)
    ]
    return list(rows.values()), bars


def _row(benchmark: Benchmark, case: Case, device: str, threads: int, provider: Provider) -> dict[str, Any]:
    row = dict.fromkeys(results.ROW)
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


def _start(
    benchmark: Benchmark, case: Case, device: str, provider: Provider, inputs: Any, truth: Any
) -> tuple[str, str, Call | None]:
    """(status, note, the call): the call has run once, and its output was right where the status is "ok"."""
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
) -> dict[str, dict[str, list[float]]]:
    """{"wall": {provider: seconds per round}, "device": ...}."""
    environments = {name: benchmark.provider(name).environment for name in calls}
    if device == "cpu":
        return {"wall": timing.interleave(calls, budget, environments, case.rounds), "device": {}}
    copies = [inputs] + [
        {name: x.detach().clone().requires_grad_(x.requires_grad) for name, x in inputs.items()}
        for _ in range(timing.cuda_copies(benchmark.bytes(case)) - 1)
    ]
    walls, graphs = {}, {}
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


def _fill(row: dict[str, Any], samples: dict[str, dict[str, list[float]]], baseline: str) -> None:
    name = row["provider"]
    wall, on_device = samples["wall"][name], samples["device"].get(name)
    row["wall_ms"] = timing.quantiles([1000 * s for s in wall])
    row["device_ms"] = timing.quantiles([1000 * s for s in on_device]) if on_device else None
    row["rounds"] = len(wall)
    if baseline in samples["wall"]:
        row["speedup"] = timing.ratio(samples["wall"][baseline], wall)


def _add_shares(row: dict[str, Any], dtype: str, ceilings: dict[str, float]) -> None:
    if row["status"] != "ok":
        return
    busy = (row["device_ms"] or row["wall_ms"])["median"] / 1000
    peak = ceilings.get(f"gemm_{dtype}_gflops")
    row["gemm_share"] = row["flops"] / busy / 1e9 / peak if peak else None
    row["copy_share"] = row["bytes"] / busy / 1e9 / ceilings["copy_gb_per_s"]


def _judge_shares(found: dict[str, Any]) -> None:
    """The bars on shares of the GEMM ceiling, which is known at the end of a run."""
    shares = {(row["op"], row["case"], row["device"], row["provider"]): row["gemm_share"] for row in found["rows"]}
    for bar in found["bars"]:
        share = shares.get((bar["op"], bar["case"], bar["device"], bar["fast"]))
        if bar["metric"] == "gemm" and share is not None:
            bar |= {"ratio": share, "state": "reached" if share >= bar["target"] else "not reached"}


def _bar(benchmark: Benchmark, bar: Bar, samples: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    measured = samples.get(bar.metric, {})
    ratios = {
        name: timing.ratio(measured[name], measured[bar.fast])
        for name in bar.slow
        if name in measured and bar.fast in measured
    }
    slow = min(ratios, key=ratios.__getitem__, default=None)
    ratio = ratios[slow] if slow else None
    state = "not measured" if ratio is None else ("reached" if ratio >= bar.target else "not reached")
    return {
        "op": benchmark.op, "name": bar.name, "case": bar.case, "fast": bar.fast, "slow": slow, "metric": bar.metric,
        "device": bar.device, "target": bar.target, "ratio": ratio, "state": state,
    }  # fmt: skip


def unmeasured_bars(benchmarks: Iterable[Benchmark], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bars that this run had no case, device or thread count for: shown, never dropped."""
    there = {(bar["op"], bar["name"], bar["case"], bar["device"]) for bar in found}
    return [
        _bar(benchmark, bar, {})
        for benchmark in benchmarks
        for bar in benchmark.bars
        if (benchmark.op, bar.name, bar.case, bar.device) not in there
    ]


def broken(found: dict[str, Any]) -> list[str]:
    """Rows of seed_fast itself that are wrong or failed; a run with any exits non-zero."""
    return [
        f"{row['op']} {row['case']} {row['provider']} on {row['device']}: {row['status']}"
        for row in found["rows"]
        if row["ours"] and row["status"].startswith(("wrong", "failed"))
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see --help."""
    from benchmarks import compare, e2e, ops, report

    members = {"ops": ops.BENCHMARKS, "e2e": e2e.BENCHMARKS, "train_tokenizer": e2e.TRAINING, "loader": e2e.LOADING}
    members["train_lm"] = e2e.LANGUAGE
    benchmarks = {name: benchmark for group in members.values() for name, benchmark in group.items()}
    groups = {name: tuple(group) for name, group in members.items()}
    parser = argparse.ArgumentParser(prog="seed-fast bench", description=__doc__)
    parser.add_argument("what", choices=(*groups, *benchmarks), nargs="?", default="ops", help="a group, or one of it")
    parser.add_argument("--quick", action="store_true", help="small cases only, in seconds; the numbers mean little")
    parser.add_argument("--full", action="store_true", help="also the cases that take minutes each")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--output", type=Path, help="file to write; default benchmarks/results/MACHINE[-GROUP].json")
    parser.add_argument("--machine", help="name of the machine in the results; default: from its GPU or CPU")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="CPU threads for everyone")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="exit 1 where seed_fast is slower than in OLD")
    parser.add_argument("--threshold", type=float, default=compare.THRESHOLD, help="loss of speed that is tolerated")
    parser.add_argument("--results", type=Path, help="judge this file instead of running")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    try:
        old = results.load(options.compare) if options.compare else None
        found = results.load(options.results) if options.results else None
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if found is None:
        chosen = [benchmarks[name] for name in groups.get(options.what, (options.what,))]
        found = run(chosen, threads=options.threads, quick=options.quick, full=options.full)
        found["bars"] += unmeasured_bars(chosen, found["bars"])
        if options.machine:
            found["provenance"]["machine"] = options.machine
        group = next(name for name, group in members.items() if chosen[0].op in group)
        suffix = "" if group == "ops" else f"-{group}"  # beside the ops' results
        name = f"{found['provenance']['machine']}{suffix}.json"
        path = options.output or (None if options.quick else results.RESULTS / name)
        if path:
            results.save(found, path)
            print(f"wrote {path}", file=sys.stderr)
    print(results.dump(found) if options.json else report.text(found), end="")
    errors = broken(found)
    if old is not None:
        verdict = compare.compare(old, found, options.threshold)
        print(compare.render(verdict, options.threshold), file=sys.stderr)
        errors += verdict.regressions
    for error in errors:
        print(f"seed-fast bench: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
