"""Many images, many processes: constant memory, and torchrun."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seed_fast import commands
from tests.pictures import encoded, picture, write_files


def peak_memory(folder: Path, output: Path) -> int:
    """Peak resident bytes of the command's main process."""
    arguments = ["-m", "seed_fast", "tokenize", str(folder), "-o", str(output), "--workers", "1", "--batch-size", "16"]
    run = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(run.pid, 0)
    run.returncode = os.waitstatus_to_exitcode(status)
    assert run.returncode == 0
    return usage.ru_maxrss * 1024


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, tok) -> None:
    content, peaks = encoded(picture(0), "PNG"), []
    for count in (200, 3000):
        folder = write_files(tmp_path / str(count), {f"{number:05d}.png": content for number in range(count)})
        peaks.append(peak_memory(folder, tmp_path / f"{count}.jsonl"))
    held = 2800 * 3 * tok.config.image_size**2  # what the pixels alone would take
    assert peaks[1] - peaks[0] < held / 2


@pytest.mark.slow
def test_a_rank_of_torchrun_with_bad_images_does_not_stop_the_others(tmp_path: Path, records: Callable) -> None:
    good = encoded(picture(0), "PNG")
    files = {f"{number:04d}.png": good if number % 2 else b"" for number in range(1600)}
    photos = write_files(tmp_path / "photos", files)
    torchrun = shutil.which("torchrun", path=Path(sys.executable).parent)
    assert torchrun is not None
    arguments = ["tokenize", str(photos), "-o", str(tmp_path / "codes.jsonl"), "--workers", "0", "--batch-size", "1"]
    command = [torchrun, "--standalone", "--nproc-per-node", "2", "-m", "seed_fast", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as run:
        try:
            text, _ = run.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            raise
    assert run.returncode != 0
    assert "exitcode  : 3" in text
    assert records(tmp_path / "codes.00000-of-00002.jsonl") == {}
    assert len(records(tmp_path / "codes.00001-of-00002.jsonl")) == 800


@pytest.mark.parametrize(("name", "expected"), [("auto", "cuda:2"), ("cuda", "cuda:2"), ("cuda:1", "cuda:1")])
def test_a_rank_takes_its_own_gpu_unless_told(name: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert commands._device(name) == torch.device(expected)
    assert chosen == [torch.device(expected).index]
    with pytest.raises(commands.UsageError, match=r"--device cuda:3: this machine has 3 CUDA device"):
        commands._device("cuda:3")
