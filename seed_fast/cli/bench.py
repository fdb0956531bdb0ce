"""`seed-fast bench`: measure seed_fast against named peers, by the benchmarks of the source tree."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from seed_fast._outputs import STDOUT
from seed_fast.cli._checks import file_option
from seed_fast.cli._options import AsJson, command
from seed_fast.cli._run import UsageError

MISSING = (
    "bench: the benchmarks are part of the source tree, not of the installed package, and there is no "
    "benchmarks/run.py in {places}; run it in a clone of the repository"
)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of `seed-fast bench`; `benchmarks.run.bench` takes them."""

    what: Annotated[
        str,
        typer.Argument(
            help="ops, or one of them; e2e, or one of its parts: encode, qformer; train_tokenizer; train_lm; loader."
        ),
    ] = "ops"
    quick: Annotated[bool, typer.Option("--quick", help="Small cases, in seconds; the numbers mean little.")] = False
    full: Annotated[bool, typer.Option("--full", help="Also the cases that take minutes each on a CPU.")] = False
    as_json: AsJson = False
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write. Default: benchmarks/results/MACHINE[-GROUP].json."),
    ] = None
    machine: Annotated[
        str | None,
        typer.Option(help="Name of this machine in the results. Default: made from its GPU, or its CPU and cores."),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads for every provider. Default: 2, for which the bars are stated."),
    ] = None
    compare: Annotated[
        Path | None,
        typer.Option(help="An older results file: exit 1 if seed_fast has lost speed relative to its peers since."),
    ] = None
    threshold: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of a speed that may be lost before --compare fails.")
    ] = 0.2
    results: Annotated[Path | None, typer.Option(help="Show and compare this results file instead of measuring.")] = (
        None
    )


@command()
def bench(options: BenchOptions) -> int:
    """Compare the speed of seed_fast with the official code and other libraries, by op and as a whole.

    The benchmarks are no part of the installed package: run this in a clone of the repository.

    \b
    Examples:
      seed-fast bench ops --quick
      seed-fast bench e2e
      seed-fast bench ops --machine big-server --threads 2
      seed-fast bench --compare old.json
      seed-fast bench --results new.json --compare old.json
    """
    if options.output is not None:
        output = file_option("--output", options.output)
        if output == STDOUT:
            raise UsageError("--output must be a file name, got standard output: --json prints the results there")
        options = replace(options, output=output)
    root = source_tree()
    if root is None:
        raise UsageError(MISSING.format(places=" or ".join(dict.fromkeys(map(str, _places())))))
    # In a fresh process at the root, so that `benchmarks` and `seed_fast` are those of the tree.
    arguments = json.dumps({name: _portable(value) for name, value in asdict(options).items()})
    return subprocess.run([sys.executable, "-m", "benchmarks.run", arguments], cwd=root, check=False).returncode


def _portable(value: Any) -> Any:
    """Return paths as absolute strings, because the process that reads them has another working folder."""
    return str(value.absolute()) if isinstance(value, Path) else value


def source_tree() -> Path | None:
    """Return the folder that holds benchmarks/run.py: the current one, or that of an editable installation, or None."""
    return next((place for place in _places() if (place / "benchmarks" / "run.py").is_file()), None)


def _places() -> tuple[Path, Path]:
    return Path.cwd(), Path(__file__).resolve().parents[2]
