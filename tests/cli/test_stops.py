"""SIGINT and SIGTERM end every command in order and in time, wherever they find it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from seed_fast import SeedTokenizer
from tests.pictures import encoded, picture, write_files

STOPS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def start(script: str, *arguments: object, **environment: str) -> subprocess.Popen:
    """A Python script as a process; its first line of output has been read when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def stop(process: subprocess.Popen, number: int, *, within: float) -> str:
    """Send the signal, check the exit code, and return standard error."""
    process.send_signal(number)
    _, stderr = process.communicate(timeout=within)
    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr
    return stderr


@STOPS
def test_a_stop_that_foreign_code_turns_into_an_error_of_its_own_is_a_stop(
    number: int, tmp_path: Path, seed_fast: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_files(tmp_path / "photos", {"a.png": encoded(picture(0), "PNG")})

    def load(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(30)
        except BaseException:  # noqa: BLE001 - as safetensors does
            raise RuntimeError("could not determine the shape of an object") from None

    monkeypatch.setattr(SeedTokenizer, "from_pretrained", load)
    result = seed_fast("tokenize", photos, "-o", tmp_path / "codes.jsonl")
    assert result.exit_code == 128 + number
    assert result.stderr == f"seed-fast: stopped by {signal.Signals(number).name}; " + (
        "what is done is kept, go on with --resume\n"
    )


SWALLOWED = """
import time
from seed_fast import _stops
from seed_fast.cli import _run

def work():
    print("ready", flush=True)
    while True:
        try:
            time.sleep(600)
        except BaseException:
            pass

_stops.GRACE = 1.0
raise SystemExit(_run.run(work, stopped="go on"))
"""


@STOPS
def test_a_stop_that_is_swallowed_ends_the_process_all_the_same(number: int) -> None:
    stderr = stop(start(SWALLOWED), number, within=20)
    assert stderr == f"seed-fast: stopped by {signal.Signals(number).name}; go on\n"


HANDLED = """
import signal, time
from seed_fast import _stops
from seed_fast.cli import _run

def work():
    with _stops.stops_handled():
        signal.signal(signal.SIGTERM, lambda *_: print("saving", flush=True))
        print("ready", flush=True)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.1)
    return 0

_stops.GRACE = 0.1
raise SystemExit(_run.run(work))
"""


def test_where_a_command_takes_its_time_to_save_a_second_stop_ends_it() -> None:
    process = start(HANDLED)
    process.terminate()
    assert process.stdout.readline() == "saving\n"
    time.sleep(1.0)
    assert process.poll() is None
    stop(process, signal.SIGTERM, within=20)


RANK = """
import os, sys, time
import torch
from seed_fast.cli import _checks
from seed_fast.cli._run import run
from seed_fast.distributed import Ranks, leave

def tokenize():
    with _checks.together_with_other_ranks():
        joined()
    return 0

def train():
    Ranks.join(torch.device("cpu"))
    joined()
    leave(together=True)
    return 0

def joined():
    if sys.argv[2] == "at the end":
        print("ready", flush=True)
        time.sleep(600 * int(os.environ["RANK"]))

if sys.argv[2] == "at the start":
    print("ready", flush=True)
raise SystemExit(run({"tokenize": tokenize, "train": train}[sys.argv[1]]))
"""


@pytest.fixture
def rank(tmp_path: Path) -> Callable:
    """`rank(number, command, where)` starts one of two ranks, as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    started: list[subprocess.Popen] = []

    def one(number: int, command: str, where: str, *, wait: bool = True) -> subprocess.Popen:
        environment = common | {"RANK": str(number), "LOCAL_RANK": str(number)}
        if wait:
            process = start(RANK, command, where, **environment)
        else:
            process = subprocess.Popen(
                [sys.executable, "-c", RANK, command, where], stdout=subprocess.PIPE, env=os.environ | environment
            )
        started.append(process)
        return process

    yield one
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("command", "number"), [("tokenize", signal.SIGTERM), ("train", signal.SIGINT)])
def test_a_rank_that_waits_for_others_at_the_end_is_stopped_at_once(command: str, number: int, rank: Callable) -> None:
    rank(1, command, "at the end", wait=False)
    first = rank(0, command, "at the end")
    time.sleep(2.0)  # into the barrier, where rank 1 never comes
    stop(first, number, within=10)


@pytest.mark.parametrize(("command", "number"), [("tokenize", signal.SIGINT), ("train", signal.SIGTERM)])
def test_a_rank_that_waits_for_one_that_never_starts_is_stopped_at_once(
    command: str, number: int, rank: Callable
) -> None:
    first = rank(0, command, "at the start")
    time.sleep(2.0)
    stop(first, number, within=10)
