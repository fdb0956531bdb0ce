"""`seed-fast tokenize` interrupted by signals, and resumed with other options."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pictures import encoded, picture, write_files


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Enough images that a signal after the first batch comes before the last."""
    content = encoded(picture(0), "PNG")
    return write_files(tmp_path / "photos", {f"{number:04d}.png": content for number in range(250)})


@pytest.mark.parametrize(
    "change", [("--resize", "bilinear"), ("--dtype", "bfloat16"), ("--plan", "plain"), ("--random-weights",)]
)
def test_resuming_with_other_options_is_refused(change: tuple, many: Path, tmp_path: Path, seed_fast: Callable) -> None:
    command = ("tokenize", many, "-o", tmp_path / "codes.jsonl", "--workers", 0)
    interrupt_after_the_first_batch(command)
    result = seed_fast(*command, "--resume", *change)
    assert result.exit_code == 2
    assert "begun by another run: " in result.stderr
    assert "; --overwrite drops it" in result.stderr
    assert seed_fast(*command, "--resume").exit_code == 0


def interrupt_after_the_first_batch(
    command: tuple, number: int = signal.SIGTERM, *, wait: float = 60
) -> tuple[int, str]:
    """Run the command until it has written something, then send a signal; its exit code and stderr."""
    partial = Path(f"{command[3]}.partial")
    arguments = [sys.executable, "-m", "seed_fast", *map(str, command), "--batch-size", "1"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        deadline = time.monotonic() + wait
        while not (partial.exists() and partial.stat().st_size) and run.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        run.send_signal(number)
        _, stderr = run.communicate()
    return run.returncode, stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_resumable_output_and_no_traceback(
    number: int, many: Path, tmp_path: Path, seed_fast: Callable, records: Callable
) -> None:
    command = ("tokenize", many, "-o", tmp_path / "codes.jsonl", "--workers", 1)
    code, stderr = interrupt_after_the_first_batch(command, number)
    assert code == 128 + number, stderr
    assert f"stopped by {signal.Signals(number).name}; what is done is kept, go on with --resume" in stderr
    assert "Traceback" not in stderr
    assert (tmp_path / "codes.jsonl.partial").exists()
    assert seed_fast(*command, "--resume").exit_code == 0
    assert [Path(path).name for path in records(tmp_path / "codes.jsonl")] == sorted(os.listdir(many))


def test_a_killed_worker_ends_the_run_which_can_be_resumed(
    many: Path, tmp_path: Path, seed_fast: Callable, records: Callable
) -> None:
    command = ("tokenize", many, "-o", tmp_path / "codes.jsonl", "--workers", 1, "--batch-size", 1)
    partial = tmp_path / "codes.jsonl.partial"
    arguments = [sys.executable, "-m", "seed_fast", *map(str, command)]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        deadline = time.monotonic() + 120
        while not (partial.exists() and partial.stat().st_size):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        (worker,) = (int(pid) for tasks in Path(f"/proc/{run.pid}/task").iterdir()
                     for pid in (tasks / "children").read_text().split())  # fmt: skip
        os.kill(worker, signal.SIGSTOP)  # it stands in whatever it was at, often in writing a result
        os.kill(worker, signal.SIGKILL)
        _, stderr = run.communicate(timeout=60)
    assert run.returncode == 1, stderr
    assert f"seed-fast: error: a decoding worker died at {many}/" in stderr.splitlines()[-1]
    assert stderr.splitlines()[-1].endswith(" or soon after: killed (out of memory?)")
    assert seed_fast(*command, "--resume").exit_code == 0
    assert [Path(path).name for path in records(tmp_path / "codes.jsonl")] == sorted(os.listdir(many))
