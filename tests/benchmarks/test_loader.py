"""The benchmark of the data path: bits first, rates of the middle of a stream, cores that are not there."""

from __future__ import annotations

import pytest
import torch

from benchmarks import measure, results, run
from benchmarks.e2e.loader import LOADER, MODEL, PEER, Stream, ours
from seed_fast.cli.bench import BenchOptions

CASE = LOADER.case("seed-tiny, 640 x 480")


def test_our_loader_gives_the_bits_of_pillow_and_other_bits_are_wrong():
    inputs = LOADER.inputs(CASE, "cpu", 0)
    provider = LOADER.provider(ours(1))
    call = provider.start(inputs, CASE, "cpu")
    try:
        pixels = call()
    finally:
        call.close()
    truth = LOADER.truth(inputs, CASE)
    assert pixels.shape == (16, 64, 64, 3)
    assert LOADER.check(CASE, provider, pixels, inputs, truth) == ("", "")
    wrong = pixels.clone()
    wrong[3, 1, 1, 1] ^= 1
    assert LOADER.check(CASE, provider, wrong, inputs, truth)[0] == "pixels differ from Pillow's"


@pytest.mark.slow
def test_the_peer_gives_the_same_pixels_as_float32():
    inputs = LOADER.inputs(CASE, "cpu", 0)
    call = LOADER.provider(PEER).start(inputs, CASE, "cpu")
    try:
        pixels = call()
    finally:
        call.close()
    assert pixels.dtype == torch.float32
    assert LOADER.check(CASE, LOADER.provider(PEER), pixels, inputs, LOADER.truth(inputs, CASE)) == ("", "")


def test_a_rate_is_that_of_the_middle_of_a_stream(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("benchmarks.e2e.loader.time.perf_counter", lambda: next(clock))

    class Ramp(Stream):
        """The first batches come at once, from what was decoded ahead; the last ones slowly, from one worker."""

        def batches(self, paths):
            count = len(paths) // self.images
            for number in range(count):
                if number >= self._margin:
                    next(clock)  # one tick more per batch
                if number >= count - self._margin:
                    [next(clock) for _ in range(50)]
                yield torch.empty(0)

    stream = Ramp(CASE, torch.device("cpu"), workers=1)
    assert stream.seconds(3) == 2
    stream.close()


def test_bars_name_cases_and_providers_that_exist():
    for bar in LOADER.bars:
        assert bar.device in LOADER.case(bar.case).devices
        assert all(LOADER.provider(name) for name in (bar.fast, *bar.slow))


@pytest.mark.slow
def test_a_quick_run_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "QUICK_SECONDS_PER_CASE", 0.0)
    monkeypatch.setattr("benchmarks.e2e.loader.os.sched_getaffinity", lambda process: {0}, raising=False)
    path = tmp_path / "out.json"
    assert run.bench(BenchOptions(what="loader", quick=True, output=path)) == 0
    assert "images/s" in capsys.readouterr().out
    rows = {row["provider"]: row for row in results.load(path)["rows"]}
    assert rows[MODEL]["status"] == rows[ours(1)]["status"] == "ok"
    assert rows[ours(2)]["status"] == "this machine has 1 core"
    assert rows[PEER]["status"] == "left out of the quick run"
