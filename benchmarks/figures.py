"""Figures of results: lines along the number of vectors, bars for everything else, one colour per provider in all."""

from __future__ import annotations

import colorsys
import functools
import io
import math
from pathlib import Path
from typing import Any

from benchmarks import catalog, results
from benchmarks.tables import number

FIGURES = results.ROOT / "docs" / "figures"
FEWEST_SIZES = 3  # sizes that make a curve
LABEL_GAP = 0.045  # between the labels at the ends of lines, as a share of the height of the axes
TICKS = tuple(step * 10.0**power for power in range(-3, 4) for step in (1, 2, 5))
GOLDEN = 0.6180339887  # steps of this share of a range are far apart, however many there are


def figure_name(measured: dict[str, Any], op: str) -> str:
    """File name of the figure of one op on one machine."""
    return f"{measured['provenance']['machine']}-{op}.svg"


def draw(measured: dict[str, Any], op: str, folder: Path) -> Path:
    """Draw one op of one results file.

    An op whose cases go by N gets a curve per provider: vectors per second against vectors per call. Any other gets
    bars: the speed of each provider relative to the op's baseline, in a panel per case.

    Args:
        measured: results that passed `benchmarks.results.validate`.
        op: name of a benchmark that has rows in them.
        folder: where the figure goes; made if missing.

    Returns:
        Path of the SVG file. The same results give the same bytes.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "seed_fast"
    from matplotlib import pyplot

    rows = [row for row in measured["rows"] if row["op"] == op and row["status"] == "ok"]
    by_size = [row for row in rows if row["case"] == f"N={row['shape'].get('N')}"]
    if len({row["shape"]["N"] for row in by_size}) >= FEWEST_SIZES:
        figure = _curves(by_size)
    else:
        figure = _bars([row for row in rows if row["speedup"] is not None])
    figure.suptitle(f"{op} on {measured['provenance']['machine']}, {measured['provenance']['threads']} CPU threads")
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    path = folder / figure_name(measured, op)
    results.write_file(path, file.getvalue())
    return path


@functools.lru_cache(maxsize=1)
def _colours() -> dict[str, tuple[float, float, float]]:
    """The colour of every provider of every benchmark: from green to blue for ours, from violet to yellow for peers."""
    colours = {}
    counts = {True: 0, False: 0}
    for benchmark in catalog.BENCHMARKS.values():
        for provider in benchmark.providers:
            if provider.name not in colours:
                colours[provider.name] = _colour(provider.ours, counts[provider.ours])
                counts[provider.ours] += 1
    return colours


def _colour(ours: bool, index: int) -> tuple[float, float, float]:
    share = (0.5 + index * GOLDEN) % 1
    hue = 0.42 + 0.26 * share if ours else (0.78 + 0.36 * share) % 1
    return colorsys.hsv_to_rgb(hue, (0.95, 0.65, 0.8)[index % 3], (0.75, 0.85, 0.6)[index % 3])


def colour_of(row: dict[str, Any]) -> tuple[float, float, float]:
    """The colour of a row's provider, as RGB in [0, 1]; the same in all figures."""
    known = _colours()
    # A provider that no benchmark has any more, in results of an older run.
    return known.get(row["provider"]) or _colour(row["ours"], len(known) + sum(map(ord, row["provider"])))


def _curves(rows: list[dict[str, Any]]) -> Any:
    """A panel per device: vectors per second against vectors per call, both logarithmic."""
    from matplotlib import pyplot

    devices = list(dict.fromkeys(row["device"] for row in rows))
    figure, panels = pyplot.subplots(
        1, len(devices), figsize=(8.5 * len(devices), 5.5), squeeze=False, layout="constrained"
    )
    for axes, device in zip(panels[0], devices, strict=True):
        here = [row for row in rows if row["device"] == device]
        sizes = sorted({row["shape"]["N"] for row in here})
        ends = []
        for provider in dict.fromkeys(row["provider"] for row in here):
            own = sorted((row for row in here if row["provider"] == provider), key=lambda row: row["shape"]["N"])
            x = [row["shape"]["N"] for row in own]
            y = [1000 * row["shape"]["N"] / (row["device_ms"] or row["wall_ms"])["median"] for row in own]
            ours, colour = own[0]["ours"], colour_of(own[0])
            axes.plot(x, y, color=colour, marker="o", markersize=4, linewidth=2 if ours else 1.2,
                      linestyle="-" if ours else "--")  # fmt: skip
            ends.append((x[-1], y[-1], provider, colour))
        axes.set(xscale="log", yscale="log", xlabel="vectors per call", ylabel="vectors per second", title=device)
        axes.set_xticks(sizes, labels=list(map(str, sizes)), minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        _label_ends(axes, ends)
    return figure


def _label_ends(axes: Any, ends: list[tuple[float, float, str, Any]]) -> None:
    """Write each line's name beside its last point, moved up where two names would overlap."""
    low, high = (math.log(limit) for limit in axes.get_ylim())
    lowest = -math.inf
    for x, y, name, colour in sorted(ends, key=lambda end: end[1]):
        lowest = at = max((math.log(y) - low) / (high - low), lowest + LABEL_GAP)
        axes.annotate(
            name, (x, y), xytext=(1.02, at), textcoords="axes fraction", color=colour, fontsize="small", va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6},
        )  # fmt: skip


def _bars(rows: list[dict[str, Any]]) -> Any:
    """A panel per case: a bar per provider, from the baseline's speed to its own."""
    from matplotlib import pyplot

    cases = list(dict.fromkeys((row["device"], row["case"]) for row in rows))
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    baseline = next((row["provider"] for row in rows if row["speedup"] == 1), "the baseline")
    columns = min(len(cases), 4 if len(cases) > 6 else 2 if len(cases) == 4 else 3)
    lines = -(-len(cases) // columns)
    size = (3 + 3.2 * columns, 0.7 + lines * (0.7 + 0.26 * len(providers)))
    figure, grid = pyplot.subplots(
        lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    panels = list(grid.flat)
    for axes, (device, case) in zip(panels, cases):  # noqa: B905 - the last line of panels may be longer than the cases
        here = [row for row in rows if (row["device"], row["case"]) == (device, case)]
        places = [providers.index(row["provider"]) for row in here]
        widths = [row["speedup"] - 1 for row in here]
        axes.barh(places, widths, left=1, color=[colour_of(row) for row in here])
        for place, row in zip(places, here, strict=True):
            time = (row["device_ms"] or row["wall_ms"])["median"]
            label = f"{number(row['speedup'])}x, {number(time)} ms"
            axes.text(max(1, row["speedup"]) * 1.06, place, label, va="center", fontsize=7)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_title(case if device == "cpu" else f"{case}, {device}", fontsize="medium")
        axes.grid(alpha=0.3, axis="x")
    for axes in panels[len(cases) :]:
        axes.set_visible(False)
    # One scale for all panels, with room for the numbers at the ends of the bars.
    speeds = [row["speedup"] for row in rows]
    low, high = min(0.5, *speeds) / 1.1, max(2.0, *speeds)
    ticks = [tick for tick in TICKS if low <= tick <= high]
    panels[0].set(xscale="log", yticks=range(len(providers)), xlim=(low, high * (high / low) ** 0.55))
    panels[0].set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks], minor=False)
    panels[0].minorticks_off()
    panels[0].set_yticks(range(len(providers)), labels=providers)
    panels[0].invert_yaxis()
    for axes in panels:
        axes.tick_params(labelsize="small")
    figure.supxlabel(f"times as fast as {baseline} (logarithmic)", fontsize="medium")
    return figure
