"""Comparison of two results files: has seed_fast become slower?

Milliseconds differ between machines and minutes, so they are not compared. Compared are each row's speed relative to
the op's baseline in its own run, and each bar's ratio to its peer in its own run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.results import key


class Verdict(NamedTuple):
    """Outcome of a comparison.

    Attributes:
        regressions: a line per row or bar that lost speed or is no longer right; a run with any fails.
        missing: a line per row that could not be compared, and why.
        compared: number of rows that were compared.
    """

    regressions: list[str]
    missing: list[str]
    compared: int


def compare(old: dict[str, Any], new: dict[str, Any], threshold: float = 0.2) -> Verdict:
    """Compare the rows of seed_fast, and the bars, of two results.

    Args:
        old, new: results that passed `benchmarks.results.validate`.
        threshold: share of its speed over its baseline that a row may lose, and of its ratio that a bar may lose.
            Interleaved ratios on a shared machine repeat within about a tenth.

    Raises:
        ValueError: threshold outside [0, 1).
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"compare: threshold must be in [0, 1), got {threshold}")
    regressions: list[str] = []
    missing: list[str] = []
    compared = 0
    # Rows of ours that were right in the old file.
    rows = {key(row): row for row in new["rows"]}
    for before in old["rows"]:
        if not before["ours"] or before["status"] != "ok":
            continue
        name = " ".join([before["op"], before["case"], before["dtype"], "on", before["device"], before["provider"]])
        after = rows.get(key(before))
        if after is None:
            missing.append(f"{name}: not in the new results")
        elif after["status"].startswith(("wrong", "failed")):
            regressions.append(f"{name}: {after['status']}")
        elif after["status"] != "ok":
            missing.append(f"{name}: {after['status']}")
        elif before["speedup"] is None or after["speedup"] is None:
            missing.append(f"{name}: no baseline in both runs")
        else:
            compared += 1
            if after["speedup"] < before["speedup"] * (1 - threshold):
                regressions.append(
                    f"{name}: {after['speedup']:.3g}x its baseline, was {before['speedup']:.3g}x "
                    f"({after['speedup'] / before['speedup'] - 1:+.0%})"
                )
    # Bars that both files have a ratio for.
    bars = {_bar_key(bar): bar for bar in new["bars"]}
    for before in old["bars"]:
        after = bars.get(_bar_key(before))
        if before["ratio"] is None or after is None or after["ratio"] is None:
            continue
        if after["ratio"] < before["ratio"] * (1 - threshold):
            regressions.append(
                f"{before['op']} {before['case']}, bar {before['name']!r}: {after['ratio']:.3g}, was "
                f"{before['ratio']:.3g}, target {before['target']:.3g}"
            )
    return Verdict(regressions, missing, compared)


def render(verdict: Verdict, threshold: float) -> str:
    """The verdict in a few lines."""
    lines = [f"compared {verdict.compared} rows, {threshold:.0%} tolerated: {len(verdict.regressions)} regressions"]
    lines += [f"  slower   {line}" for line in verdict.regressions]
    lines += [f"  missing  {line}" for line in verdict.missing]
    return "\n".join(lines)


def _bar_key(bar: dict[str, Any]) -> tuple[str, ...]:
    return tuple(bar[name] for name in ("op", "name", "case", "device"))
