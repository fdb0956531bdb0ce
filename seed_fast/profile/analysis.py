"""Combine times, costs and ceilings: shares of the peaks, the roof of each stage, and Amdahl's law."""

from __future__ import annotations

import statistics
from typing import Any

from seed_fast.profile.cost import Cost
from seed_fast.profile.measure import PARTS, STAGES, Samples


def quantiles(samples: list[float]) -> dict[str, float]:
    """Return the median and the quantiles 0.2 and 0.8 of samples: {"median", "q20", "q80"}."""
    if len(samples) == 1:
        return dict.fromkeys(("median", "q20", "q80"), samples[0])
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    return {"median": statistics.median(samples), "q20": fifths[0], "q80": fifths[3]}


def analyse(samples: Samples, costs: dict[str, Cost], ceilings: dict[str, float], batch: int) -> dict[str, Any]:
    """Compute everything that the table, the JSON and the picture show.

    Args:
        samples: times of the rounds.
        costs: cost by stage and part; a stage without one (decoding) gets no rates.
        ceilings: what `seed_fast.profile.ceilings.ceilings` returns.
        batch: images per round.

    Returns:
        {"whole": {...}, "stages": [{...}, ...]}; docs/profile.md lists the fields. Times are ms per batch, shares are 0
        to 1, gains are factors. A field that is not known is None.
    """
    wall = statistics.median(samples.wall)
    # Medians of the stages can add up to more than the median of the whole; shares refer to the larger of the two.
    total = max(wall, sum(statistics.median(samples.seconds[name]) for name in STAGES))
    stages = [_stage(name, samples, costs.get(name), ceilings, total) for name in _in_order(samples)]
    top = [stage for stage in stages if stage["part_of"] is None]
    products = [stage["gemm_ms"] for stage in top if stage["gemm_ms"] is not None]
    whole = {
        "ms": quantiles([1000 * seconds for seconds in samples.wall]),
        "images_per_second": batch / wall,
        "other_ms": max(0.0, 1000 * wall - sum(stage["ms"]["median"] for stage in top)),
        "flops": sum(stage["flops"] or 0 for stage in top),
        "bytes": sum(stage["bytes"] or 0 for stage in top),
        "gemm_share": sum(products) / (1000 * wall),
        "launches": sum(stage["launches"] or 0 for stage in top),
        "idle_ms": sum(stage["idle_ms"] or 0.0 for stage in top),
        "decoding_cores": _decoding_cores(top),
    }
    return {"whole": whole, "stages": stages}


def _in_order(samples: Samples) -> list[str]:
    """Return the names of the measured stages, each followed by its parts."""
    names = [name for stage in STAGES for name in (stage, *(p for p in PARTS if p.startswith(stage + "/")))]
    return [name for name in names if name in samples.seconds]


def _stage(name: str, samples: Samples, cost: Cost | None, ceilings: dict[str, float], total: float) -> dict[str, Any]:
    """Return the fields of one stage, or of one part ("Q-Former/FFN"); `total` is the time that shares refer to, s."""
    stage, _, part = name.partition("/")
    seconds = samples.seconds[name]
    median = statistics.median(seconds)
    share = min(median / total, 1 - 1e-6)  # a part is timed by itself, perhaps in a noisy moment
    found: dict[str, Any] = {
        "name": part or stage,
        "part_of": stage if part else None,
        "where": (STAGES | PARTS)[name],
        "ms": quantiles([1000 * s for s in seconds]),
        "share": share,
        "launches": samples.launches.get(name),
        "idle_ms": 1000 * statistics.median(samples.idle[name]) if samples.idle.get(name) else None,
        "gain_if_free": 1 / (1 - share),
    }
    found |= dict.fromkeys(("flops", "bytes", "weight_bytes", "dtype", "intensity", "gflops", "gb_per_s", "gemm_ms",
                            "gemm_share", "copy_share", "roof_ms", "bound", "gain_at_roof"))  # fmt: skip
    if cost is None:
        return found
    # The roof: the time that computing takes at the peak of products, or moving bytes at that of copies.
    peak = ceilings[f"gemm_{cost.dtype}_gflops"] * 1e9
    computing, moving = cost.flops / peak, cost.bytes / (ceilings["copy_gb_per_s"] * 1e9)
    roof = max(computing, moving)
    return found | {
        "flops": cost.flops,
        "bytes": cost.bytes,
        "weight_bytes": cost.weight_bytes,
        "dtype": cost.dtype,
        "intensity": cost.flops / cost.bytes,
        "gflops": cost.flops / median / 1e9,
        "gb_per_s": cost.bytes / median / 1e9,
        "gemm_ms": 1000 * computing,
        "gemm_share": computing / median,
        "copy_share": moving / median,
        "roof_ms": 1000 * roof,
        "bound": "compute" if computing >= moving else "memory",
        "gain_at_roof": 1 / (1 - share * max(0.0, 1 - roof / median)),
    }


def _decoding_cores(top: list[dict[str, Any]]) -> float | None:
    """Return how many cores must decode images so that the other stages never wait; None where nothing is timed."""
    decoding = sum(stage["ms"]["median"] for stage in top if stage["where"] == "main")
    rest = sum(stage["ms"]["median"] for stage in top if stage["where"] != "main")
    return decoding / rest if rest else None
