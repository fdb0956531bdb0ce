"""Many images, many processes: constant memory, and torchrun."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seed_fast.cli import _checks
from seed_fast.cli._run import UsageError
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


def torchrun(*arguments: object) -> tuple[int, str]:
    """`seed-fast tokenize` with these arguments on two ranks; exit code and output."""
    launcher = shutil.which("torchrun", path=Path(sys.executable).parent)
    assert launcher is not None
    ranks = [launcher, "--standalone", "--nproc-per-node", "2", "-m", "seed_fast", "tokenize"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([*ranks, *map(str, arguments)], start_new_session=True, **pipes) as run:
        try:
            text, _ = run.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            raise
    return run.returncode, text


@pytest.mark.slow
def test_ranks_of_torchrun_share_out_files_and_shards_and_resume(
    tmp_path: Path, records: Callable, seed_fast: Callable
) -> None:
    photos = write_files(tmp_path / "photos", {f"{n:02d}.png": encoded(picture(n), "PNG") for n in range(31)})
    with tarfile.open(tmp_path / "more.tar", "w") as archive:
        archive.add(photos, "in")
    inputs = (photos, tmp_path / "more.tar")
    assert seed_fast("tokenize", *inputs, "-o", tmp_path / "all.jsonl", "--workers", 0).exit_code == 0
    whole = records(tmp_path / "all.jsonl")
    options = (*inputs, "-o", tmp_path / "codes.jsonl", "--workers", 0, "--batch-size", 4, "--resume")
    for resumed in (False, True):
        code, text = torchrun(*options)
        assert code == 0, text
        halves = [records(tmp_path / f"codes.{rank:05d}-of-00002.jsonl") for rank in range(2)]
        assert [len(half) for half in halves] == [31, 31]
        assert not halves[0].keys() & halves[1].keys()
        assert halves[0] | halves[1] == whole
        if not resumed:  # one rank is torn in the middle of a line, the other is whole
            done = tmp_path / "codes.00001-of-00002.jsonl"
            (tmp_path / f"{done.name}.partial").write_bytes(done.read_bytes()[:2000])
            done.unlink()


@pytest.mark.slow
def test_a_rank_of_torchrun_with_bad_images_does_not_stop_the_others(tmp_path: Path, records: Callable) -> None:
    good = encoded(picture(0), "PNG")
    files = {f"{number:04d}.png": good if number % 2 else b"" for number in range(1600)}
    photos = write_files(tmp_path / "photos", files)
    code, text = torchrun(photos, "-o", tmp_path / "codes.jsonl", "--workers", 0, "--batch-size", 1)
    assert code != 0
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
    assert _checks.device_option(name) == torch.device(expected)
    assert chosen == [torch.device(expected).index]
    with pytest.raises(UsageError, match=r"--device cuda:3: this machine has 3 CUDA device"):
        _checks.device_option("cuda:3")


@pytest.mark.parametrize(("cores", "ranks", "expected"), [(16, "1", 8), (16, "4", 3), (2, "1", 1), (2, "4", 0)])
def test_ranks_on_one_machine_share_its_cores(
    cores: int, ranks: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_checks.os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert _checks.workers_option(None) == expected
