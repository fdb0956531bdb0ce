"""Tables of results: for a terminal, and in Markdown for the documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks import catalog

Table = list[list[str]]  # lines of cells; the first line is the header
Results = dict[str, Any]  # in the schema of `benchmarks.results`


class OpTable(NamedTuple):
    """The rows of one op, device and dtype.

    Attributes:
        device, dtype: what the rows share.
        table: one line per provider, one column per case, and one for the extra memory if it was measured.
        notes: remarks below the table, and who could not run and why.
    """

    device: str
    dtype: str
    table: Table
    notes: list[str]


class Headline(NamedTuple):
    """One line of the README's table: how many times as fast `fast` is as `slow` on a case."""

    what: str
    op: str
    case: str
    fast: str
    slow: str


# At most eight.
HEADLINES = (
    Headline("pixels to codes, float32", "encode", "seed-2, B=1", "seed_fast, fast, float32", "official"),
    Headline("pixels to codes, bfloat16", "encode", "seed-2, B=1", "seed_fast, fast, bfloat16", "official"),
    Headline("ViT features to codes, float32", "qformer", "seed-2, B=8", "seed_fast, fast, float32", "official"),
    Headline("nearest code", "nearest_code", "N=8192", "seed_fast", "official formula"),
    Headline("nearest code", "nearest_code", "N=8192", "seed_fast", "FAISS"),
    Headline("attention of the ViT", "attention", "ViT 257x257, B=8", "seed_fast", "SDPA"),
    Headline(
        "training step, stage 1, features cached",
        "train_stage1",
        "seed-2, B=4",
        "seed_fast, cached features",
        "official",
    ),
    Headline("training step, language model", "train_lm", "OPT-125m, 1 x 512", "seed_fast", "Trainer + PEFT"),
)


def number(value: float) -> str:
    """Three significant digits without an exponent: 0.0123, 12.3, 12300."""
    short = f"{value:.3g}"
    return f"{float(short):.0f}" if "e+" in short else short


def op_tables(measured: Results, op: str) -> list[OpTable]:
    """The tables of one op, one per device and dtype; [] if the results have no rows of it."""
    tables = []
    rows = [row for row in measured["rows"] if row["op"] == op]
    for device, dtype in dict.fromkeys((row["device"], row["dtype"]) for row in rows):
        chosen = [row for row in rows if (row["device"], row["dtype"]) == (device, dtype)]
        cases = list(dict.fromkeys(row["case"] for row in chosen))
        table, notes = [["provider", *cases, "extra memory"]], []
        for provider in dict.fromkeys(row["provider"] for row in chosen):
            own = {row["case"]: row for row in chosen if row["provider"] == provider}
            # Who ran nowhere gets a note instead of a line.
            if not any(row["status"] == "ok" for row in own.values()):
                notes.append(f"{provider}: {'; '.join(dict.fromkeys(row['status'] for row in own.values()))}")
                continue
            peaks = [row["peak_bytes"] for row in own.values() if row["peak_bytes"] is not None]
            memory = f"{number(peaks[0] / 2**20)} MiB" if peaks else "-"
            table.append([provider, *(_cell(own.get(case)) for case in cases), memory])
            notes += _remarks(provider, own)
        if not any(row["peak_bytes"] is not None for row in chosen):
            table = [line[:-1] for line in table]
        tables.append(OpTable(device, dtype, table, notes))
    return tables


def _cell(row: dict[str, Any] | None) -> str:
    """Time, rate where images or tokens are counted, and speed over the baseline; or why there is none."""
    if row is None:
        return "-"
    if row["status"] != "ok":
        return str(row["status"])
    times = row["device_ms"] or row["wall_ms"]
    cell = f"{number(times['median'])} ms"
    # Quantiles where somebody waits for a batch.
    counted = next((name for name in ("images", "tokens") if name in row["shape"]), None)
    if counted:
        per_second = 1000 * row["shape"][counted] / times["median"]
        cell += f" [{number(times['q20'])}, {number(times['q80'])}], {number(per_second)} {counted}/s"
    return cell + (f" ({number(row['speedup'])}x)" if row["speedup"] is not None else "")


def _remarks(provider: str, rows: dict[str, dict[str, Any]]) -> list[str]:
    """The remarks on a provider's rows, each once, with the cases that it is about."""
    cases: dict[str, list[str]] = {}
    for case, row in rows.items():
        if row["note"]:
            cases.setdefault(row["note"], []).append(case)
    return [f"{provider}: {note} ({'; '.join(where)})" for note, where in cases.items()]


def source(measured: Results, device: str = "cpu") -> str:
    """Where numbers come from, in one line: processor, instruction sets, threads, torch, load, commit, day."""
    origin = measured["provenance"]
    torch_runs_on = origin.get("cpu_capability")  # files of older runs have neither
    limits = origin.get("instruction_limits")
    parts = [origin["gpu"]] if device == "cuda" and origin["gpu"] else []
    parts.append(f"{origin['cpu']} ({', '.join(origin['cpu_features'] or ['instruction sets not known'])})")
    if limits:
        parts.append(f"held to fewer instruction sets by {assignments(limits)}")
    parts.append(f"{origin['threads']} threads")
    parts.append(f"torch {origin['torch']}" + (f" on {torch_runs_on}" if torch_runs_on else ""))
    parts.append(f"load {origin['load_before']} before the run")
    parts.append(f"commit {origin['commit']}, {origin['time'][:10]}")
    return "; ".join(parts)


def assignments(variables: dict[str, str]) -> str:
    """Environment variables as a shell takes them."""
    return " ".join(f"{name}={value}" for name, value in variables.items())


def bars_table(measured: Results) -> Table:
    """Every bar of one results file: its claim, its case, the ratio and whether that reaches the target."""
    table = [["op", "bar", "case", "device", "ratio", "target", ""]]
    for bar in measured["bars"]:
        ratio = "-" if bar["ratio"] is None else number(bar["ratio"])
        claim = bar["name"] + (f" (against {bar['slow']})" if bar["slow"] else "")
        table.append([bar["op"], claim, bar["case"], bar["device"], ratio, number(bar["target"]), bar["state"]])
    return table


def bars_of_machines(everything: Sequence[Results]) -> Table:
    """Every bar of all results, with a column per machine: its ratio, whether it is reached, the times behind it."""
    by_machine: dict[str, dict[tuple[str, str, str, str], str]] = {}
    targets: dict[tuple[str, str, str, str], str] = {}
    for measured in everything:
        cells = by_machine.setdefault(measured["provenance"]["machine"], {})
        for bar in measured["bars"]:
            key = (bar["op"], bar["name"], bar["case"], bar["device"])
            targets[key] = number(bar["target"])
            if bar["ratio"] is not None:
                cells[key] = f"{number(bar['ratio'])}, {bar['state']}{_times_behind(bar, measured)}"
    table = [["op", "claim", "case", "device", "target", *by_machine]]
    for key, target in targets.items():
        table.append([*key, target, *(cells.get(key, "not measured") for cells in by_machine.values())])
    return table


def _times_behind(bar: dict[str, Any], measured: Results) -> str:
    """The two times that a bar compares, such as " (1.2 ms, FAISS: 3.4 ms)"; "" for a bar that compares none."""
    if bar["metric"] not in ("wall", "device"):
        return ""
    fast, slow = (
        _row(measured, bar["op"], bar["case"], bar["device"], bar[side])[f"{bar['metric']}_ms"]["median"]
        for side in ("fast", "slow")
    )
    return f" ({number(fast)} ms, {bar['slow']}: {number(slow)} ms)"


def _row(measured: Results, op: str, case: str, device: str, provider: str) -> dict[str, Any]:
    """The row with these values; {} if there is none."""
    wanted = (op, case, device, provider)
    rows = measured["rows"]
    return next((row for row in rows if (row["op"], row["case"], row["device"], row["provider"]) == wanted), {})


def headlines(everything: Sequence[Results]) -> Table:
    """The README's table: a line per headline, a column per machine with both times and their ratio."""
    machines = list(dict.fromkeys(measured["provenance"]["machine"] for measured in everything))
    table = [["what", "case", "compared with", *machines]]
    for line in HEADLINES:
        cells = dict.fromkeys(machines, "not measured")
        for measured in everything:
            if cell := _headline_cell(measured, line):
                cells[measured["provenance"]["machine"]] = cell
        table.append([line.what, line.case, line.slow, *cells.values()])
    return table


def _headline_cell(measured: Results, line: Headline) -> str:
    """Both times and their ratio, "" if these results don't have them.

    The ratio is one of rounds: of the bar that compares the two, or the speed over the baseline.
    """
    fast, slow = (_row(measured, line.op, line.case, "cpu", name) for name in (line.fast, line.slow))
    if not fast or not slow or not fast["wall_ms"] or not slow["wall_ms"]:
        return ""
    wanted = (line.op, line.case, line.fast, line.slow, "wall", "cpu")
    fields = ("op", "case", "fast", "slow", "metric", "device")
    ratio = next((bar["ratio"] for bar in measured["bars"] if tuple(bar[name] for name in fields) == wanted), None)
    if slow["speedup"] == 1:  # the baseline itself
        ratio = fast["speedup"]
    if ratio is None:
        return ""
    times = f"{number(fast['wall_ms']['median'])} ms against {number(slow['wall_ms']['median'])} ms"
    return f"{times}: {number(ratio)}x"


def machines(everything: Sequence[Results]) -> dict[str, Table]:
    """{machine: table of its provenance, with a column per results file}."""
    by_machine: dict[str, list[Results]] = {}
    for measured in everything:
        by_machine.setdefault(measured["provenance"]["machine"], []).append(measured)
    tables = {}
    for machine, files in by_machine.items():
        columns = [_flat(measured) for measured in files]
        names = dict.fromkeys(name for column in columns for name in column)
        lines = [[name, *(column.get(name, "not recorded") for column in columns)] for name in names]
        tables[machine] = [["what", *map(_group, files)], *lines]
    return tables


def _group(measured: Results) -> str:
    """Which benchmarks a results file holds: the name of their group, or their own names."""
    ops = list(dict.fromkeys(row["op"] for row in measured["rows"]))
    return (catalog.group_of(ops[0]) if ops else None) or ", ".join(ops)


def _flat(measured: Results) -> dict[str, str]:
    """Provenance and ceilings as text, by name."""
    flat = {**measured["provenance"], **measured["provenance"]["peers"]}
    del flat["peers"]
    for device, reached in measured["ceilings"].items():
        flat |= {f"{device}, {name}": number(rate) for name, rate in reached.items()}
    return {name: _shown(value) for name, value in flat.items()}


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return assignments(value) or "none"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "none" if value is None else str(value)


def markdown(table: Table) -> list[str]:
    """Lines of a table in Markdown."""
    head, *body = [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in table]
    return [head, "|" + " --- |" * len(table[0]), *body]


def text(measured: Results) -> str:
    """All tables of one results file, for a terminal."""
    parts = [source(measured, "cuda" if measured["provenance"]["gpu"] else "cpu"), ""]
    for op in dict.fromkeys(row["op"] for row in measured["rows"]):
        for table in op_tables(measured, op):
            title = f"{op}, {table.dtype}, {table.device}"
            parts += [title, *_aligned(table.table), *(f"  {line}" for line in table.notes), ""]
    if measured["bars"]:
        parts += ["bars", *_aligned(bars_table(measured)), ""]
    for device, reached in measured["ceilings"].items():
        rates = (f"{name} {number(rate)}" for name, rate in reached.items())
        parts.append(f"ceilings of {device}: {', '.join(rates)}")
    parts.append("In round brackets: how many times as fast as the op's baseline, in the same rounds. In square ones:")
    parts.append("the 20 % and 80 % quantiles of the rounds.")
    return "\n".join(parts) + "\n"


def _aligned(table: Table) -> list[str]:
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in table]  # fmt: skip
