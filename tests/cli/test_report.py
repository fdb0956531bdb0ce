"""What the command shows when nobody sits at a terminal."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from seed_fast import _terminal
from seed_fast.cli.tokenize import closing_table
from seed_fast.data.pipeline import Job, TokenizeSummary
from seed_fast.profiling import Stage


def set_clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until a test moves its `now`, in seconds."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(_terminal.time, "monotonic", lambda: clock.now)
    return clock


def test_progress_is_plain_lines_with_images_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = io.StringIO(), set_clock(monkeypatch)
    progress = _terminal.ProgressBar(stream)
    for seconds in (4, 6, 2, 13):
        clock.now += seconds
        progress.advance(20)
    progress.close()
    assert stream.getvalue() == "40 images, 4.0 images/s\n80 images, 3.2 images/s\n", "one line in ten seconds"


def test_a_resumed_run_counts_what_was_done_but_not_in_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = io.StringIO(), set_clock(monkeypatch)
    progress = _terminal.ProgressBar(stream, total=300, done=100)
    progress.note("step 10 of 30: loss 2.5")
    clock.now += 10
    progress.advance(50)
    assert progress.per_second() == 5
    assert stream.getvalue() == "150 of 300 images, 5.0 images/s, 0:00:30 left, step 10 of 30: loss 2.5\n"


def test_the_table_says_what_overlaps_and_what_a_share_is_of() -> None:
    stages = [Stage("read", "workers", 6.0, 0.6), Stage("ViT", "device", 3.0, 0.3), Stage("write", "main", 1.0, 0.1)]
    summary = TokenizeSummary(written=10, resumed=2, skipped=1, seconds=5.0, waiting_seconds=0.5, stages=stages)
    text = closing_table(summary, Job((), workers=2), "cuda:0")
    assert text.splitlines() == [
        "stage          where            seconds  ms/image   share",
        "read           2 workers           6.00    600.00   60.0%",
        "ViT            cuda:0              3.00    300.00   30.0%",
        "write          main process        1.00    100.00   10.0%",
        "A share is of the 10.00 s that all stages took together.",
        "Wall time 5.00 s = 4.00 s stages of the main process and cuda:0 + 0.50 s waiting for workers + 0.50 s other. "
        "Workers ran beside it; their seconds are summed.",
        "10 images encoded, 2.0 images/s; 2 were there before; 1 skipped",
    ]


def test_progress_of_bytes_is_in_millions_and_thousands(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = io.StringIO(), set_clock(monkeypatch)
    progress = _terminal.ProgressBar(stream, unit="bytes")
    progress.expect(6_000_000_000)
    clock.now += 10
    progress.advance(2_000_000_000)
    assert stream.getvalue() == "2.00G of 6.00G bytes, 200M bytes/s, 0:00:20 left\n"


def test_a_run_without_a_new_image_has_a_table_too() -> None:
    stages = [Stage("read", "main", 0.0, 0.0)]
    text = closing_table(TokenizeSummary(stages=stages), Job(()), "cpu")
    assert "read           main process        0.00         -    0.0%" in text
    assert "0 images encoded, 0.0 images/s" in text


def test_beside_a_gpu_seconds_are_not_added_up() -> None:
    stages = [Stage("read", "workers", 6.0, 0.6), Stage("ViT", "device", 4.9, 0.3), Stage("write", "main", 1.0, 0.1)]
    summary = TokenizeSummary(written=10, seconds=5.0, waiting_seconds=0.5, stages=stages)
    line = closing_table(summary, Job(("photos",), workers=2), "cuda:0").splitlines()[-2]
    assert line == (
        "Wall time 5.00 s; cuda:0 computed for 4.90 s of it, beside the main process, which waited 0.50 s for workers. "
        "Workers ran beside it; their seconds are summed."
    )
