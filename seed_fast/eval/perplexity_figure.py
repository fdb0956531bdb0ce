"""The figure of a language model's evaluation: the perplexity of each code, in causal order and in another."""

from __future__ import annotations

import io
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot, ticker

LINES = {  # colours that people who see no red or green can tell apart (Okabe and Ito)
    "causal": ("#0072b2", "-", "causal order"),
    "shuffled": ("#d55e00", "--", "another order, same model"),
    "shuffled, trained so": ("#009e73", ":", "another order, model trained on it"),
}


def perplexity_svg(perplexity: dict[str, dict[str, Any]], title: str) -> bytes:
    """Draw the perplexity at each position as lines, one for each order.

    Args:
        perplexity: `LanguageModelResult.perplexity`.
        title: the title of the figure.

    Returns:
        An SVG file; the same input gives the same bytes.
    """
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, values in perplexity.items():
        colour, style, label = LINES[name]
        positions = range(1, len(values["by_place"]) + 1)
        mean = f"{label}: {values['mean']:.1f}"
        axes.plot(positions, values["by_place"], style, color=colour, label=mean, marker="o", markersize=3)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.set_xlabel("position of the code")
    axes.set_ylabel("perplexity")
    axes.set_title(title, fontsize=10)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=9)
    file = io.BytesIO()
    with pyplot.rc_context({"svg.hashsalt": "seed_fast"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return file.getvalue()
