"""The stage timer on the host's clock and with CUDA events."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from seed_fast.profiling import StageTimer

STAGES = {"read": "workers", "ViT": "device", "write": "main"}


def test_seconds_and_shares_add_up() -> None:
    timer = StageTimer(STAGES, torch.device("cpu"))
    with timer.measure("ViT"):
        time.sleep(0.02)
    timer.add("read", 0.06)
    timer.add("write", 0.02)
    read, vit, write = timer.stages()
    assert (read.name, vit.where, write.seconds) == ("read", "device", 0.02)
    assert vit.seconds >= 0.02
    assert read.share + vit.share + write.share == pytest.approx(1)
    assert timer.seconds("workers") == read.seconds == 0.06


def test_nothing_measured_is_no_share() -> None:
    assert [stage.share for stage in StageTimer(STAGES).stages()] == [0, 0, 0]


def test_a_gpu_stage_is_the_time_between_its_events_and_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, passed = [], False

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            calls.append(f"record on {stream}")

        def query(self) -> bool:
            return passed

        def synchronize(self) -> None:
            calls.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return 250.0  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device.type}")
    timer = StageTimer(STAGES, SimpleNamespace(type="cuda"))
    for _ in range(2):
        with timer.measure("ViT"):
            calls.append("launch")
        with timer.measure("write"):
            pass
    assert calls == ["record on the stream of cuda", "launch", "record on the stream of cuda"] * 2
    timer.resolve(wait=False)
    assert timer.seconds("device") == 0
    passed = True
    timer.resolve(wait=False)
    assert timer.seconds("device") == 0.5
    timer.resolve()
    assert timer.seconds("device") == 0.5
    assert timer.seconds("main") < 0.1
