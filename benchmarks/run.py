"""Measure, save, show and compare: the work of `seed-fast bench`.

`seed-fast bench` is the only command line. It starts `python -m benchmarks.run OPTIONS` at the root of the source tree,
with its options as one JSON object. With other arguments, `python -m benchmarks.run ...` is `seed-fast bench ...`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks import catalog, compare, results, tables
from benchmarks.measure import broken, measure, unmeasured_bars
from seed_fast._terminal import complain

EXIT_WORSE, EXIT_USAGE = 1, 2


def bench(options: Any) -> int:
    """Do what one `seed-fast bench` asks for.

    Args:
        options: a `seed_fast.cli.bench.BenchOptions`, or an object with the same attributes.

    Returns:
        Exit code: 0; 1 where seed_fast is wrong, failed, or became slower than in the file to compare with; 2 where an
        option or a file is invalid, after one line on stderr and before anything is measured.
    """
    try:
        chosen = catalog.choose(options.what)
        old = results.load(Path(options.compare)) if options.compare else None
        measured = results.load(Path(options.results)) if options.results else None
    except (OSError, ValueError) as error:
        complain(f"error: bench: {error}")
        return EXIT_USAGE
    if measured is None:
        measured = _measure_and_save(chosen, options)
    print(results.dump(measured) if options.as_json else tables.text(measured), end="")
    # What fails the run: rows of ours that are not right, and what was lost against the older file.
    failures = broken(measured)
    if old is not None:
        verdict = compare.compare(old, measured, options.threshold)
        print(compare.render(verdict, options.threshold), file=sys.stderr)
        failures += verdict.regressions
    for failure in failures:
        complain(f"bench: {failure}")
    return EXIT_WORSE if failures else 0


def _measure_and_save(chosen: list[Any], options: Any) -> dict[str, Any]:
    _separate_compiled_code()
    threads = options.threads or min(2, os.cpu_count() or 1)
    measured = measure(chosen, threads=threads, quick=options.quick, full=options.full)
    measured["bars"] += unmeasured_bars(chosen, measured["bars"])
    if options.machine:
        measured["provenance"]["machine"] = options.machine
    # The numbers of a quick run mean little, so they replace no file unless one is named.
    path = Path(options.output) if options.output else None
    if path is None and not options.quick:
        group = catalog.group_of(chosen[0].op)
        suffix = "" if group == "ops" else f"-{group}"
        path = results.RESULTS / f"{measured['provenance']['machine']}{suffix}.json"
    if path:
        results.save(measured, path)
        print(f"wrote {path}", file=sys.stderr)
    return measured


def _separate_compiled_code() -> None:
    """Give a process with hidden instruction sets a folder of its own for what torch.compile compiles.

    torch 2.13 finds code of another capability in the same folder and runs it: its results are wrong, or it crashes.
    """
    capability = os.environ.get("ATEN_CPU_CAPABILITY")
    if capability:
        folder = Path(tempfile.gettempdir()) / f"torchinductor-{os.getuid()}-{capability}"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def main(arguments: Sequence[str]) -> int:
    """Run with the options in one JSON object, or hand a command line to `seed-fast bench`. Returns the exit code."""
    if len(arguments) == 1 and arguments[0].startswith("{"):
        return bench(SimpleNamespace(**json.loads(arguments[0])))
    command = [sys.executable, "-m", "seed_fast", "bench", *arguments]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
