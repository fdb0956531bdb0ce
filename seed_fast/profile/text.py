"""Format a profile as text: a table, and the sentences that say what follows from it."""

from __future__ import annotations

from typing import Any

HEAD = ("stage", "ms", "q20..q80", "share", "GFLOP", "MB", "GEMM peak", "copy peak", "bound", "launches", "idle ms",
        "if free", "at roof")  # fmt: skip


def render(found: dict[str, Any]) -> str:
    """Return the text of one profile, given as `seed_fast.profile.run.profile` returns it."""
    lines = [HEAD, *(_row(stage) for stage in found["stages"]), *_last_rows(found["whole"])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    table = []
    for first, *others in lines:
        cells = [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True))]
        table.append("  ".join(cells).rstrip())
    return "\n".join([title(found), *found["notes"], "", *table, "", *_conclusions(found), "", *_legend(found)])


def _row(stage: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of one stage."""
    times = stage["ms"]
    return (
        ("  " if stage["part_of"] else "") + stage["name"],
        _number(times["median"]),
        f"{_number(times['q20'])}..{_number(times['q80'])}",
        f"{stage['share']:.1%}",
        _number(stage["flops"] or None, 1e9),
        _number(stage["bytes"], 1e6),
        _percent(stage["gemm_share"] or None),
        _percent(stage["copy_share"]),
        stage["bound"] or "-",
        "-" if stage["launches"] is None else str(stage["launches"]),
        _number(stage["idle_ms"]),
        f"{stage['gain_if_free']:.2f}x",
        "-" if stage["gain_at_roof"] is None else f"{stage['gain_at_roof']:.2f}x",
    )


def _last_rows(whole: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows below the stages: the time between them, and the whole."""
    times = whole["ms"]
    share = whole["other_ms"] / times["median"]
    other = ("between stages", _number(whole["other_ms"]), "", f"{share:.1%}", *[""] * 9)
    total = (
        "whole", _number(times["median"]), f"{_number(times['q20'])}..{_number(times['q80'])}", "100%",
        _number(whole["flops"], 1e9), _number(whole["bytes"], 1e6), _percent(whole["gemm_share"]), "", "",
        str(whole["launches"]), _number(whole["idle_ms"]), "", "",
    )  # fmt: skip
    return [other, total]


def title(found: dict[str, Any]) -> str:
    """Return one line that says what was measured: model, plan, dtype, batch, machine."""
    gpus = found["devices"]["gpus"]
    on_gpu = found["device"].startswith("cuda") and gpus
    where = gpus[0]["name"] if on_gpu else f"{found['devices']['cpu']['model']}, {_threads(found)}"
    plan = found["plan"] + (f" ({found['cross_attention']})" if found["cross_attention"] else "")
    return (
        f"{found['model']}, plan {plan}, {found['dtype']}, batches of {found['batch_size']}, {where}, "
        f"torch {found['versions']['torch']}; medians of {found['rounds']} rounds"
    )


def _threads(found: dict[str, Any]) -> str:
    return f"{found['threads']} thread{'s' * (found['threads'] != 1)}"


def _conclusions(found: dict[str, Any]) -> list[str]:
    """Return the sentences below the table: speed, Amdahl's law, decoding, other programs."""
    whole, top = found["whole"], [stage for stage in found["stages"] if stage["part_of"] is None]
    largest = max(top, key=lambda stage: stage["share"])
    lines = [
        f"{whole['images_per_second']:.1f} images/s. Matrix products at their measured peak would take "
        f"{whole['gemm_share']:.0%} of this time.",
        f"Amdahl: if {largest['name']} took no time at all, the whole would be {largest['gain_if_free']:.2f}x as fast"
        + (f"; at its roof, {largest['gain_at_roof']:.2f}x." if largest["gain_at_roof"] else "."),
    ]
    rest = max((stage["gain_if_free"] for stage in top if stage is not largest), default=1.0)
    lines.append(f"No other stage can gain more than {rest:.2f}x, however fast it becomes.")
    if whole["decoding_cores"] is not None:
        lines.append(
            "seed-fast tokenize decodes in worker processes beside the other stages, which then are the whole; "
            f"cores needed to keep up with them: {whole['decoding_cores']:.2g}."
        )
    cores = found["devices"]["cpu"]["cores"]
    if found["load_before"] > cores / 2:
        lines.append(
            f"Other programs ran: load {found['load_before']} on {cores} cores before this one. Repeat it alone."
        )
    return lines


def _legend(found: dict[str, Any]) -> list[str]:
    """Return the lines that explain the columns."""
    reached = found["ceilings"]
    peaks = ", ".join(
        f"{_number(value)} GFLOP/s in {name.split('_')[1]}"
        for name, value in reached.items()
        if name.startswith("gemm_")
    )
    if found["device"].startswith("cuda"):
        work = "launches: CUDA kernels. idle: stage time during which the GPU ran nothing (it waits for launches)."
    else:
        work = (
            "launches: calls that reach an operation of torch, without views (on a GPU: kernels).\n"
            f"idle: stage time less the CPU time of this process per thread ({found['threads']}; decoding: 1): threads "
            "waited, or other programs ran."
        )
    return [
        f"Ceilings measured in this run: matrix products {peaks}; copies {reached['copy_gb_per_s']:.4g} GB/s.",
        "GFLOP: matrix products, attention, codebook. MB: weights once, inputs and outputs of each product once, as",
        "if all between two products were fused; what stays in a cache moves faster than copies: 100% is no limit.",
        "bound: which ceiling is nearer. if free: gain of the whole if the stage took no time; at roof: if it took",
        "what its ceiling allows. Parts of the Q-Former are timed by themselves.",
        work,
    ]


def _number(value: float | None, scale: float = 1.0) -> str:
    """Return value / scale with three digits, or "-" for None."""
    if value is None:
        return "-"
    value /= scale
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
