"""Timing: interleaved rounds, medians of ratios, and memory of one call."""

from __future__ import annotations

import dataclasses
import sys
import time

import pytest
import torch

from benchmarks import memory, timing
from benchmarks.providers import Benchmark, Case, Provider


class Recorder:
    """A call that notes when it is timed."""

    def __init__(self, name, log, seconds=1.0):
        self.name, self.log, self._seconds = name, log, seconds

    def seconds(self, repeats):
        self.log.append((self.name, repeats))
        return self._seconds


@pytest.fixture
def instant(monkeypatch):
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)


def test_every_round_times_everyone_once_in_rotated_order(instant):
    log = []
    samples = timing.interleave({name: Recorder(name, log) for name in "abc"}, budget=0)
    order = "".join(name for name, _ in log)
    rounds = [order[at : at + 3] for at in range(3, len(order), 3)]  # after one untimed call of each
    assert rounds == (["abc", "bca", "cab"] * timing.MINIMUM_ROUNDS)[: timing.MINIMUM_ROUNDS]
    assert {name: len(s) for name, s in samples.items()} == dict.fromkeys("abc", timing.MINIMUM_ROUNDS)


def test_a_short_call_is_repeated_after_an_untimed_one(instant):
    log = []
    timing.interleave({"a": Recorder("a", log, seconds=timing.SAMPLE_SECONDS / 10)}, budget=0)
    assert log[2:4] == [("a", 1), ("a", 10)]


def test_environment_is_set_around_its_own_provider_alone(instant, monkeypatch):
    import os

    monkeypatch.delenv("SEED_FAST_CPU_ISA", raising=False)
    seen = {"a": set(), "b": set()}
    calls = {name: lambda name=name: seen[name].add(os.environ.get("SEED_FAST_CPU_ISA")) for name in seen}
    timing.interleave(calls, budget=0, environments={"a": {"SEED_FAST_CPU_ISA": "avx2"}})
    assert seen == {"a": {"avx2"}, "b": {None}}


def test_ratio_is_the_median_over_rounds_and_not_the_ratio_of_medians():
    assert timing.ratio([1, 10, 100], [1, 5, 10]) == 2
    assert timing.ratio([10, 1, 100], [1, 5, 10]) == 10
    with pytest.raises(ValueError, match="one sample per round, got 1 and 2"):
        timing.ratio([1], [1, 2])


def test_a_call_of_seconds_is_called_once_per_round_and_never_before():
    log = []
    samples = timing.interleave({name: Recorder(name, log) for name in "ab"}, budget=0, minimum=2)
    assert [len(each) for each in samples.values()] == [2, 2]
    assert log == [("a", 1), ("b", 1), ("b", 1), ("a", 1)]


def test_a_limit_stops_what_takes_longer_and_is_gone_afterwards():
    with pytest.raises(timing.TooLong), timing.limit(0.02):
        time.sleep(5)
    with timing.limit(0.02):
        pass
    with timing.limit(None):
        time.sleep(0.04)


def test_quantiles_of_known_samples():
    assert timing.quantiles([5, 1, 4, 2, 3, 0]) == {"median": 2.5, "q20": 1, "q80": 4}
    assert timing.quantiles([7]) == {"median": 7, "q20": 7, "q80": 7}


def test_copies_on_a_gpu_are_called_in_whole_rotations(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    counts = [0, 0, 0]

    def counting(index):
        counts[index] += 1

    wall = timing.CudaWall([lambda index=index: counting(index) for index in range(3)])
    assert wall.seconds(7) > 0
    assert counts == [3, 3, 3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_timed_by_graph_replays_and_with_launches(doubling):
    from benchmarks import measure

    inputs = {"x": torch.arange(1.0, 5.0, device="cuda")}
    on_gpu = dataclasses.replace(doubling, inputs=lambda case, device, seed: inputs)
    rows, _ = measure.measure_case(on_gpu, on_gpu.case("N=4"), "cuda", 2, True)
    ours = next(row for row in rows if row["ours"])
    assert 0 < ours["device_ms"]["median"] <= ours["wall_ms"]["median"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_peak_memory_counts_what_a_call_allocates_and_frees():
    size = 1 << 26

    def allocates(inputs, case):
        return lambda: torch.ones(case.shape["N"], dtype=torch.uint8).numel()

    cases = (Case("small", {"N": 1}), Case("large", {"N": size}))
    benchmark = Benchmark(
        op="allocating", cases=cases, providers=(Provider("p", allocates),), baseline="p", bars=(),
        inputs=lambda case, device, seed: {}, truth=None, check=None, flops=None,
        bytes=lambda case: case.shape["N"], memory_cases=("large",),
    )  # fmt: skip
    peak = memory.peak_here(benchmark, benchmark.provider("p"), "large", "cpu")
    assert 0.99 * size <= peak < 1.5 * size  # the kernel counts resident pages in batches
