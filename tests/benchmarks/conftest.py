"""An op whose providers are plain Python, so that the harness is tested without any real benchmark."""

from __future__ import annotations

import pytest
import torch

from benchmarks.providers import Bar, Benchmark, Case, Provider, Unavailable


def _not_here(inputs, case):
    raise Unavailable("needs a quantum computer")


def _crashes(inputs, case):
    return lambda: {}["missing"]


def check(case, provider, output, inputs, truth):
    return ("", "exact") if torch.equal(output, truth) else (f"got {output.tolist()}", "")


@pytest.fixture
def doubling():
    """Twice x, by a fast, a slow, a wrong, an absent and a crashing provider."""
    size = 256

    def slow(inputs, case):
        x = inputs["x"]
        return lambda: torch.stack([2 * value for value in x])

    return Benchmark(
        op="doubling",
        cases=(Case("N=4", {"N": 4}, quick=True), Case(f"N={size}", {"N": size})),
        providers=(
            Provider("seed_fast", lambda inputs, case: lambda: 2 * inputs["x"], ours=True),
            Provider("loop", slow),
            Provider("wrong", lambda inputs, case: lambda: 3 * inputs["x"]),
            Provider("absent", lambda inputs, case: lambda: None, package="no-such-distribution"),
            Provider("elsewhere", _not_here),
            Provider("crashing", _crashes),
        ),
        baseline="loop",
        bars=(
            Bar("ahead of the loop", "N=4", "seed_fast", ("loop", "wrong"), 0.001),
            Bar("a million times the loop", "N=4", "seed_fast", ("loop",), 1e6),
            Bar("ahead of what is not there", "N=4", "seed_fast", ("absent",), 1),
            Bar("on a GPU", "N=4", "seed_fast", ("loop",), 1, "device", "cuda"),
        ),
        inputs=lambda case, device, seed: {"x": torch.arange(1.0, case.shape["N"] + 1)},
        truth=lambda inputs, case: 2 * inputs["x"],
        check=check,
        flops=lambda case: case.shape["N"],
        bytes=lambda case: 8 * case.shape["N"],
        memory_cases=(),
    )


@pytest.fixture
def measured(doubling, monkeypatch):
    """Results of a quick run of `doubling`."""
    from benchmarks import measure, timing

    monkeypatch.setattr(measure, "QUICK_SECONDS_PER_CASE", 0.0)
    monkeypatch.setattr(timing, "ceilings", lambda device, quick: {"gemm_float32_gflops": 100.0, "copy_gb_per_s": 10.0})
    results = measure.measure([doubling], threads=2, quick=True, devices=("cpu",))
    results["bars"] += measure.unmeasured_bars([doubling], results["bars"])
    return results
