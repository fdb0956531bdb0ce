"""Write the committed results into the documents: `python -m benchmarks.report` rewrites README.md's and docs/' blocks.

A block is the text between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`. NAME is a benchmark (its tables and
figures on every machine), `readme` (a few numbers), `bars` (every claim) or `machines` (where the numbers come from).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import catalog, results, tables
from benchmarks.figures import FIGURES, draw, figure_name
from benchmarks.tables import Results, markdown

DOCUMENTS = (results.ROOT / "README.md", results.ROOT / "docs" / "benchmarks.md")
BLOCK = re.compile(r"(<!-- bench:(?P<name>[\w-]+) -->\n)(.*?)(<!-- /bench:(?P=name) -->)", re.DOTALL)
NOTHING = "No results are committed yet.\n"
OTHER_BLOCKS = ("readme", "bars", "machines")


def block(name: str, everything: Sequence[Results], ops: Sequence[str], folder: Path, figures: Path) -> str:
    """The Markdown between the marks of a block, from the results of all machines.

    Args:
        name: name of the block.
        everything: all results.
        ops: names of the benchmarks that may have a block.
        folder: where the document is, for the links to figures.
        figures: where the figures are.

    Raises:
        ValueError: there is no such block.
    """
    if name not in (*ops, *OTHER_BLOCKS):
        raise ValueError(f"bench:{name}: a block must be one of {', '.join((*ops, *OTHER_BLOCKS))}")
    lines: list[str] = []
    if everything and name == "readme":
        lines += [*markdown(tables.headlines(everything)), "", *_where_from(everything)]
    elif everything and name == "bars":
        lines += markdown(tables.bars_of_machines(everything))
    elif everything and name == "machines":
        for machine, table in tables.machines(everything).items():
            lines += [f"**{machine}**", "", *markdown(table), ""]
    elif everything:
        for measured in everything:
            lines += _op_block(measured, name, folder, figures)
    return "\n".join(lines).rstrip() + "\n" if lines else NOTHING


def _op_block(measured: Results, op: str, folder: Path, figures: Path) -> list[str]:
    """The tables of one op in one results file, with their provenance, and its figure; [] if it has no rows there."""
    lines: list[str] = []
    machine = measured["provenance"]["machine"]
    for table in tables.op_tables(measured, op):
        lines += [f"**{op}, {table.dtype}, {machine}**", "", f"{tables.source(measured, table.device)}:", ""]
        lines += [*markdown(table.table), ""]
        lines += [*(f"- {line}" for line in table.notes), ""] if table.notes else []
    figure = figures / figure_name(measured, op)
    if lines and figure.is_file():
        lines += [f"![{op} on {machine}]({os.path.relpath(figure, folder)})", ""]
    return lines


def _order(measured: Results) -> tuple[str, int]:
    """Sort key of results: machine by machine, and the groups of benchmarks as the catalog has them."""
    ops = [row["op"] for row in measured["rows"][:1]]
    names = list(catalog.BENCHMARKS)
    return measured["provenance"]["machine"], names.index(ops[0]) if ops and ops[0] in names else len(names)


def _where_from(everything: Sequence[Results]) -> list[str]:
    """One line per machine on the processor behind its column."""
    lines = {}
    for measured in everything:
        origin = measured["provenance"]
        limits = origin.get("instruction_limits")
        hidden = f", held to fewer instruction sets by {tables.assignments(limits)}" if limits else ""
        features = ", ".join(origin["cpu_features"] or ["instruction sets not known"])
        where = f"{origin['gpu']}, {origin['cpu']}" if origin["gpu"] else origin["cpu"]
        lines[origin["machine"]] = f"{where} ({features}{hidden}), {origin['threads']} threads, torch {origin['torch']}"
    return ["; ".join(f"{machine}: {where}" for machine, where in lines.items()) + "."]


def refreshed(document: str, everything: Sequence[Results], ops: Sequence[str], folder: Path, figures: Path) -> str:
    """`document` with every block rewritten; the arguments are those of `block`."""
    return BLOCK.sub(
        lambda match: match[1] + block(match["name"], everything, ops, folder, figures) + match[4], document
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figures and rewrite the documents. Returns 0; 1 where --check finds a stale block; 2 for a bad file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=results.RESULTS, help="folder of results files")
    parser.add_argument(
        "--documents",
        type=Path,
        nargs="+",
        default=[path for path in DOCUMENTS if path.is_file()],
        help="files whose blocks to rewrite",
    )
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder of figures")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a block is stale")
    options = parser.parse_args(arguments)
    stale = []
    try:
        everything = sorted((results.load(path) for path in results.files(options.results)), key=_order)
        if not options.check:
            for measured in everything:
                for op in dict.fromkeys(row["op"] for row in measured["rows"]):
                    draw(measured, op, options.figures)
        for path in options.documents:
            old = path.read_text()
            new = refreshed(old, everything, list(catalog.BENCHMARKS), path.resolve().parent, options.figures.resolve())
            if new != old:
                stale.append(path)
                if not options.check:
                    results.write_file(path, new)
    except (OSError, ValueError) as error:
        print(f"benchmarks.report: {error}", file=sys.stderr)
        return 2
    for path in stale:
        print(f"{path}: {'stale; run python -m benchmarks.report' if options.check else 'rewritten'}", file=sys.stderr)
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
