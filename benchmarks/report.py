"""Tables and plots from results files: `python -m benchmarks.report` rewrites the blocks of README.md and docs/.

A block is what stands between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`; NAME is an op, `summary`, `bars` or
`machines`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import results

DOCUMENTS = (results.ROOT / "README.md", results.ROOT / "docs" / "benchmarks.md")
FIGURES = results.ROOT / "docs" / "figures"
BLOCK = re.compile(r"(<!-- bench:(?P<name>[\w-]+) -->\n)(.*?)(<!-- /bench:(?P=name) -->)", re.DOTALL)
NOTHING = "No results are committed yet.\n"
OTHER_BLOCKS = ("summary", "bars", "machines")
Table = list[list[str]]


def tables(found: dict[str, Any], op: str) -> list[tuple[str, Table, list[str]]]:
    """[(title, table with a header row, lines below it)], one per device and dtype."""
    made = []
    rows = [row for row in found["rows"] if row["op"] == op]
    for device, dtype in dict.fromkeys((row["device"], row["dtype"]) for row in rows):
        chosen = [row for row in rows if (row["device"], row["dtype"]) == (device, dtype)]
        cases = list(dict.fromkeys(row["case"] for row in chosen))
        by_place = {(row["provider"], row["case"]): row for row in chosen}
        table, below = [["provider", *cases, "extra memory"]], []
        for provider in dict.fromkeys(row["provider"] for row in chosen):
            own = [row for row in chosen if row["provider"] == provider]
            if not any(row["status"] == "ok" for row in own):
                below.append(f"{provider}: {'; '.join(dict.fromkeys(row['status'] for row in own))}")
                continue
            peaks = [row["peak_bytes"] for row in own if row["peak_bytes"] is not None]
            memory = f"{peaks[0] / 2**20:.3g} MiB" if peaks else "-"
            table.append([provider, *(_cell(by_place.get((provider, case))) for case in cases), memory])
            below += [f"{provider}, {row['case']}: {row['note']}" for row in own if row["note"]]
        made.append((f"{op}, {dtype}, {_where(found, device)}", table, below))
    return made


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    if row["status"] != "ok":
        return row["status"]
    times = row["device_ms"] or row["wall_ms"]
    time = times["median"]
    counted = next((name for name in ("images", "tokens") if name in row["shape"]), None)
    # Latency and its quantiles where it is a batch of images that someone waits for.
    rate = ""
    if counted:
        per_second = 1000 * row["shape"][counted] / time
        rate = f" [{times['q20']:.3g}, {times['q80']:.3g}], {per_second:.3g} {counted}/s"
    return f"{time:.3g} ms{rate}" + (f" ({row['speedup']:.3g}x)" if row["speedup"] is not None else "")


def _where(found: dict[str, Any], device: str) -> str:
    source = found["provenance"]
    return source["gpu"] if device == "cuda" else f"{source['cpu']}, {source['threads']} threads"


def bars_table(found: dict[str, Any]) -> Table:
    """Every bar: its claim, its case, the ratio and whether it is reached."""
    table = [["op", "bar", "case", "device", "ratio", "target", ""]]
    for bar in found["bars"]:
        ratio = "-" if bar["ratio"] is None else f"{bar['ratio']:.3g}"
        named = bar["name"] + (f" (against {bar['slow']})" if bar["slow"] else "")
        table.append([bar["op"], named, bar["case"], bar["device"], ratio, f"{bar['target']:.3g}", bar["state"]])
    return table


def text(found: dict[str, Any]) -> str:
    """Everything, for a terminal."""
    parts = []
    for op in dict.fromkeys(row["op"] for row in found["rows"]):
        for title, table, below in tables(found, op):
            parts += [title, *_aligned(table), *(f"  {line}" for line in below), ""]
    if found["bars"]:
        parts += ["bars", *_aligned(bars_table(found)), ""]
    for device, reached in found["ceilings"].items():
        parts.append(f"ceilings of {device}: " + ", ".join(f"{name} {value:.4g}" for name, value in reached.items()))
    parts.append("In round brackets: how many times faster than the op's baseline, in the same rounds. In square ones:")
    parts.append("the 20 % and 80 % quantiles of the rounds.")
    return "\n".join(parts) + "\n"


def _aligned(table: Table) -> list[str]:
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in table]  # fmt: skip


def _markdown(table: Table) -> list[str]:
    head, *body = [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in table]
    return [head, "|" + " --- |" * len(table[0]), *body]


def block(name: str, everything: list[dict[str, Any]], ops: Sequence[str], folder: Path, figures: Path) -> str:
    """The Markdown between the marks of block `name`, from the results of all machines.

    Args:
        folder: where the document is, for the links to plots.
        figures: where the plots are.

    Raises:
        ValueError: no such block.
    """
    if name not in (*ops, *OTHER_BLOCKS):
        raise ValueError(f"bench:{name}: a block must be one of {', '.join((*ops, *OTHER_BLOCKS))}")
    if not everything:
        return NOTHING
    lines = []
    for found in everything:
        machine = f"**{found['provenance']['machine']}**"
        if name == "machines":
            lines += [machine, "", *_markdown(_provenance(found)), ""]
        elif name == "bars":
            lines += [machine, "", *_markdown(bars_table(found)), ""]
        elif name == "summary":
            lines += [*_summary(found), ""]
        else:
            for title, table, below in tables(found, name):
                lines += [f"**{title}**", "", *_markdown(table), ""]
                lines += [*(f"- {line}" for line in below), ""] if below else []
            figure = figures / figure_name(found, name)
            if figure.is_file():
                lines += [f"![{name} on {found['provenance']['machine']}]({os.path.relpath(figure, folder)})", ""]
    return "\n".join(lines).rstrip() + "\n"


def _summary(found: dict[str, Any]) -> list[str]:
    """The bars that were measured, with the times behind them."""
    times = {
        (row["op"], row["case"], row["device"], row["provider"], measure): row[f"{measure}_ms"]["median"]
        for row in found["rows"]
        for measure in ("wall", "device")
        if row[f"{measure}_ms"]
    }
    table = [["op", "case", "claim", "seed_fast", "peer", "ratio", "target", ""]]
    measured = [bar for bar in found["bars"] if bar["ratio"] is not None]
    for bar in measured:
        if bar["metric"] not in ("wall", "device"):
            numbers = ["-", "-", f"{bar['ratio']:.3g}", f"{bar['target']:.3g}"]
            table.append([bar["op"], bar["case"], bar["name"], *numbers, bar["state"]])
            continue
        ours, peer = (
            f"{times[bar['op'], bar['case'], bar['device'], bar[side], bar['metric']]:.3g} ms"
            for side in ("fast", "slow")
        )
        numbers = [f"{bar['fast']}: {ours}", f"{bar['slow']}: {peer}", f"{bar['ratio']:.3g}", f"{bar['target']:.3g}"]
        table.append([bar["op"], bar["case"], bar["name"], *numbers, bar["state"]])
    source = found["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in source["peers"].items() if version)
    where = [source["gpu"]] if source["gpu"] else []
    where += [f"{source['cpu']}, {source['threads']} threads", f"torch {source['torch']}"]
    return [
        f"{'; '.join(where)}; {versions}; commit {source['commit']}:",
        "",
        *_markdown(table),
        "",
        f"Not measured on this machine: {len(found['bars']) - len(measured)} of {len(found['bars'])} claims.",
    ]


def _provenance(found: dict[str, Any]) -> Table:
    flat = {**found["provenance"], **found["provenance"]["peers"]}
    del flat["peers"]
    for device, reached in found["ceilings"].items():
        flat |= {f"{device}, {name}": f"{value:.4g}" for name, value in reached.items()}
    return [["what", "value"], *([name, _said(value)] for name, value in flat.items())]


def _said(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{name}={setting}" for name, setting in value.items()]
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "none" if value is None else str(value)


def refreshed(document: str, everything: list[dict[str, Any]], ops: Sequence[str], folder: Path, figures: Path) -> str:
    """`document` with every block rewritten."""
    return BLOCK.sub(
        lambda match: match[1] + block(match["name"], everything, ops, folder, figures) + match[4], document
    )


def figure_name(found: dict[str, Any], op: str) -> str:
    """Name of the plot of one op on one machine."""
    return f"{found['provenance']['machine']}-{op}.svg"


def draw(found: dict[str, Any], op: str, folder: Path) -> Path:
    """Plot one op: vectors per second against N where its cases have an N, else speed over the baseline per case."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "seed_fast"  # the same results give the same file
    from matplotlib import pyplot

    rows = [row for row in found["rows"] if row["op"] == op and row["status"] == "ok"]
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    by_size = all("N" in row["shape"] for row in rows)
    if by_size:  # a case with more in its name differs in more than N, and is no point of the curve
        rows = [row for row in rows if row["case"] == f"N={row['shape']['N']}"]
    else:
        rows = [row for row in rows if row["speedup"] is not None]
    for device, provider in dict.fromkeys((row["device"], row["provider"]) for row in rows):
        own = [row for row in rows if (row["device"], row["provider"]) == (device, provider)]
        style = {"marker": "o", "linewidth": 2 if own[0]["ours"] else 1, "linestyle": "-" if own[0]["ours"] else "--"}
        x = [row["shape"]["N"] if by_size else f"{row['case']} {row['dtype']}" for row in own]
        y = [
            row["shape"]["N"] / (row["device_ms"] or row["wall_ms"])["median"] * 1000 if by_size else row["speedup"]
            for row in own
        ]
        axes.plot(x, y, label=f"{provider} ({device})", **style)
    if by_size:
        axes.set(xscale="log", yscale="log", xlabel="N, vectors per call", ylabel="vectors per second")
        sizes = sorted({row["shape"]["N"] for row in rows})
        axes.set_xticks(sizes, labels=map(str, sizes), minor=False)
    else:
        axes.set(yscale="log", ylabel="times as fast as the baseline")
        axes.tick_params(axis="x", labelrotation=20)
    axes.set_title(f"{op}, {found['provenance']['machine']}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="x-small")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / figure_name(found, op)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see --help."""
    from benchmarks import e2e, ops

    names = (*ops.BENCHMARKS, *e2e.BENCHMARKS, *e2e.TRAINING, *e2e.LOADING, *e2e.LANGUAGE)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=results.RESULTS, help="folder of results files")
    parser.add_argument("--documents", type=Path, nargs="+", default=[p for p in DOCUMENTS if p.is_file()])
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a block is stale")
    options = parser.parse_args(arguments)
    try:
        everything = [results.load(path) for path in results.files(options.results)]
        if not options.check:
            for found in everything:
                for op in dict.fromkeys(row["op"] for row in found["rows"]):
                    draw(found, op, options.figures)
        stale = []
        for path in options.documents:
            old = path.read_text()
            new = refreshed(old, everything, names, path.resolve().parent, options.figures.resolve())
            if new != old:
                stale.append(path)
                if not options.check:
                    path.write_text(new)
    except (OSError, ValueError) as error:
        print(f"benchmarks.report: {error}", file=sys.stderr)
        return 2
    for path in stale:
        print(f"{path}: {'stale; run python -m benchmarks.report' if options.check else 'rewritten'}", file=sys.stderr)
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
