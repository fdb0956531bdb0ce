"""Draw a profile: the shares of each stage in time, operations and bytes, and the roofline."""

from __future__ import annotations

import io
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot, ticker
from matplotlib.axes import Axes

from seed_fast.profile.text import title

# Colours that colour-blind readers can tell apart (Okabe and Ito); parts have the colour of their stage.
COLOURS = {
    "decode+resize": "#999999",
    "normalise": "#56b4e9",
    "ViT": "#0072b2",
    "Q-Former": "#d55e00",
    "nearest code": "#009e73",
    "between stages": "#dddddd",
}
MARKERS = {None: "o", "self-attention": "^", "cross-attention": "s", "FFN": "D"}
LABELLED = 0.045  # a piece of a bar with at least this share shows its number


def draw(found: dict[str, Any]) -> bytes:
    """Return the PNG of one profile, given as `seed_fast.profile.run.profile` returns it."""
    figure, (bars, roof) = pyplot.subplots(1, 2, figsize=(13, 6), layout="constrained", width_ratios=(1, 1.35))
    figure.suptitle(title(found), fontsize=10)
    _bars(bars, found)
    _roofline(roof, found)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    pyplot.close(figure)
    return file.getvalue()


def _bars(axes: Axes, found: dict[str, Any]) -> None:
    """Draw three stacked bars: how time, operations and bytes divide among the stages."""
    top, whole = [stage for stage in found["stages"] if stage["part_of"] is None], found["whole"]
    pieces = {stage["name"]: (stage["ms"]["median"], stage["flops"] or 0, stage["bytes"] or 0) for stage in top}
    pieces["between stages"] = (whole["other_ms"], 0, 0)
    totals = [sum(values) or 1 for values in zip(*pieces.values(), strict=True)]
    floor = [0.0] * len(totals)
    for name, values in pieces.items():
        shares = [value / total for value, total in zip(values, totals, strict=True)]
        colour = COLOURS[name]
        axes.bar(
            range(len(shares)), shares, 0.62, bottom=floor, color=colour, label=name, edgecolor="white", linewidth=0.8
        )
        for at, share in enumerate(shares):
            if share >= LABELLED:
                dark = name not in ("between stages", "normalise")
                text = f"{share:.1%}" + (f"\n{_round(values[0])} ms" if at == 0 and share >= 2 * LABELLED else "")
                axes.text(at, floor[at] + share / 2, text, ha="center", va="center", fontsize=8.5,
                          color="white" if dark else "black")  # fmt: skip
        floor = [low + share for low, share in zip(floor, shares, strict=True)]
    # Under each bar, what its 100% is.
    per_batch = (f"time\n{_round(whole['ms']['median'])} ms", f"operations\n{_round(totals[1] / 1e9)} GFLOP",
                 f"bytes\n{_round(totals[2] / 1e6)} MB")  # fmt: skip
    axes.set_xticks(range(len(per_batch)), per_batch)
    axes.set(ylim=(0, 1), title=f"Who takes it: shares of a batch of {found['batch_size']}")
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _roofline(axes: Axes, found: dict[str, Any]) -> None:
    """Draw achieved GFLOP/s over operations per byte, below the roof of the measured ceilings."""
    stages = [stage for stage in found["stages"] if stage["flops"]]
    bandwidth = found["ceilings"]["copy_gb_per_s"]
    peaks = {dtype: found["ceilings"][f"gemm_{dtype}_gflops"] for dtype in {stage["dtype"]: None for stage in stages}}
    left = min(*(stage["intensity"] for stage in stages), min(peaks.values()) / bandwidth) / 3
    right = max(*(stage["intensity"] for stage in stages), max(peaks.values()) / bandwidth) * 6
    low = min(*(stage["gflops"] for stage in stages), bandwidth * left) / 2
    # The roofs: a slope, where copies limit, and a level for each dtype, where products limit.
    for (dtype, peak), style in zip(peaks.items(), ("-", "--"), strict=False):
        ridge = peak / bandwidth
        axes.plot([left, ridge, right], [bandwidth * left, peak, peak], style, color="black", linewidth=1.4, zorder=1)
        axes.annotate(f"GEMM peak, {dtype}: {_round(peak)} GFLOP/s", (right, peak), (-4, 4), textcoords="offset points",
                      ha="right", fontsize=8.5)  # fmt: skip
    axes.annotate(f"copies: {_round(bandwidth)} GB/s", (left, bandwidth * left), (10, -4), textcoords="offset points",
                  va="top", fontsize=8.5)  # fmt: skip
    # The stages and their parts, each joined to its roof by a dotted line.
    for stage in stages:
        part = stage["name"] if stage["part_of"] else None
        colour = COLOURS[stage["part_of"] or stage["name"]]
        x, y = stage["intensity"], stage["gflops"]
        roof = min(peaks[stage["dtype"]], bandwidth * x)
        axes.plot([x, x], [min(y, roof), max(y, roof)], ":", color=colour, linewidth=1, zorder=2)
        share = f" {y / roof:.0%} of its roof, {stage['share']:.1%} of all time"
        axes.plot(x, y, MARKERS[part], color="white" if part else colour, markeredgecolor=colour, markeredgewidth=1.6,
                  markersize=7 if part else 10, zorder=3, label=stage["name"] + ":" + share)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, 2 * max(peaks.values())))
    axes.set(xlabel="operations per byte moved, FLOP/byte", ylabel="achieved, GFLOP/s",
             title="Roofline: what each stage reaches of what the machine allows it")  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_formatter(ticker.NullFormatter())
    axes.grid(alpha=0.25, which="major")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8.5, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))


def _round(value: float) -> str:
    """Return a number with three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
