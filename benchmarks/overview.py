"""Draw the README's figure: `python -m benchmarks.overview` writes docs/figures/overview.svg.

Left: two pictures of the `shapes` world that differ in one object, with the codes that seed-tiny gives them. Right:
costs of the stages of seed-2's inference plan, in operations, counted from the sizes, and in time, from the committed
results.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from benchmarks import results
from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.data import shapes
from seed_fast.profile.cost import costs

FIGURE = results.ROOT / "docs" / "figures" / "overview.svg"
FOLDER = results.ROOT / "benchmarks" / "results"
MACHINE = "amd-epyc-2-cores"
PROVIDER, BATCH = "seed_fast, fast, float32", 8
INDEX, OBJECT, SHAPE = 13, 1, "star"  # the scene, and what its second object becomes in the other picture
COLUMNS = 8  # codes per line
STAGES = {"ViT": "#0072b2", "Q-Former": "#d55e00", "nearest code": "#009e73"}  # as `seed-fast profile` colours them
CHANGED = "#cc79a7"


def scenes() -> list[shapes.Scene]:
    """Return two scenes that differ in the shape of one object alone."""
    scene = shapes.scene(seed=0, index=INDEX, split="test")
    objects = [replace(o, shape=SHAPE) if i == OBJECT else o for i, o in enumerate(scene.objects)]
    return [scene, replace(scene, objects=tuple(objects))]


def codes_of(tok: SeedTokenizer, scene: shapes.Scene) -> list[int]:
    """Return the 32 codes of the picture of a scene."""
    return tok.encode(shapes.render(scene, tok.config.image_size))[0].tolist()


def milliseconds() -> dict[str, float]:
    """Return {stage: ms per batch of 8 images} from the committed results.

    The Q-Former is timed with the lookup, and both with the ViT, so the stages are differences. The lookup by itself
    was timed in another run on the same machine.
    """
    rows = [row for path in results.files(FOLDER) for row in _rows(results.load(path))]

    def median(op: str, case: str, provider: str) -> float:
        (found,) = [row for row in rows if (row["op"], row["case"], row["provider"]) == (op, case, provider)]
        return float(found["wall_ms"]["median"])

    whole, behind_vit = (median(op, f"seed-2, B={BATCH}", PROVIDER) for op in ("encode", "qformer"))
    lookup = median("nearest_code", f"N={BATCH * SeedConfig.preset('seed-2').num_codes}", "seed_fast")
    return {"ViT": whole - behind_vit, "Q-Former": behind_vit - lookup, "nearest code": lookup}


def _rows(measured: dict[str, Any]) -> list[dict[str, Any]]:
    return measured["rows"] if measured["provenance"]["machine"] == MACHINE else []


def operations() -> dict[str, float]:
    """Return {stage: floating-point operations per batch}; those of the lookup include its two small products."""
    counted = costs(SeedConfig.preset("seed-2"), BATCH, plan="absorbed")
    return {stage: float(counted[stage].flops) for stage in STAGES}


def draw() -> bytes:
    """Return the figure as SVG; the same results and codes give the same bytes."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "seed_fast", "svg.fonttype": "none"}  # text stays text
    from matplotlib import pyplot

    tok = SeedTokenizer.from_pretrained("seed-tiny")
    both = scenes()
    codes = [codes_of(tok, scene) for scene in both]
    figure = pyplot.figure(figsize=(11, 4.2), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(1, 2.3, 2.6))

    # Left: each picture, and beside it its codes in causal order; those that changed are marked.
    for row, (scene, own, other) in enumerate(zip(both, codes, codes[::-1], strict=True)):
        picture = figure.add_subplot(grid[row, 0])
        picture.imshow(shapes.render(scene, 256))
        picture.axis("off")
        table = figure.add_subplot(grid[row, 1])
        table.axis("off")
        table.set(xlim=(0, COLUMNS), ylim=(len(own) / COLUMNS, 0))
        for at, (code, before) in enumerate(zip(own, other, strict=True)):
            x, y = at % COLUMNS + 0.5, at // COLUMNS + 0.5
            same = code == before
            table.text(x, y, str(code), ha="center", va="center", fontsize=10,
                       color="#333333" if same else "white",
                       bbox={"boxstyle": "round,pad=0.25", "color": "#e8e8e8" if same else CHANGED})  # fmt: skip
        changed = sum(a != b for a, b in zip(own, other, strict=True))
        table.set_title(
            "32 codes by seed-tiny" if row == 0 else f"one object differs: {changed} codes change", fontsize=10
        )

    # Right: shares of the stages.
    axes = figure.add_subplot(grid[:, 2])
    amounts = {"operations": operations(), "time": milliseconds()}
    names = [(what, stage) for what in amounts for stage in STAGES]
    places = [at + 0.7 * (what == "time") for at, (what, _) in enumerate(names)]
    shares = [amounts[what][stage] / sum(amounts[what].values()) for what, stage in names]
    axes.barh(places, shares, color=[STAGES[stage] for _, stage in names])
    for place, share, (what, stage) in zip(places, shares, names, strict=True):
        inside = share > 0.5
        text = _percent(share) + (f" = {amounts[what][stage]:,.3g} ms" if what == "time" and not inside else "")
        axes.text(share - 0.01 if inside else share + 0.01, place, text, va="center",
                  ha="right" if inside else "left", color="white" if inside else "black", fontsize=10)  # fmt: skip
    axes.set_yticks(places, [f"{stage}, {what}" for what, stage in names])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xticks=[])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    whole = sum(amounts["time"].values())
    axes.set_title(f"what the stages of seed-2 cost: {whole:,.0f} ms\n{BATCH} images, float32, {MACHINE}", fontsize=10)
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return file.getvalue()


def _percent(share: float) -> str:
    """Return a share in percent, with two digits where it is small."""
    return f"{share:.1%}" if share >= 0.01 else f"{100 * share:.2g}%"


def main() -> None:
    """Draw, and say where the figure is."""
    results.write_file(FIGURE, draw())
    print(FIGURE)


if __name__ == "__main__":
    main()
