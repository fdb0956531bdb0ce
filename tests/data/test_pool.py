"""The pool of worker processes: time and memory that an item may take, and an end in every case."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from seed_fast.data import worker
from seed_fast.data.pool import CHUNK, Pool, WorkerDied


def _double(number: int) -> int:
    return 2 * number


def _nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def _nap_for_bytes(size: int) -> int:
    time.sleep(0.001)
    return size


def _large(count: int) -> bytes:
    return bytes(count)


def _raise(number: int) -> int:
    raise KeyError(f"number {number}")


def _end(code: int) -> int:
    os._exit(code)


def _crash(number: int) -> int:
    os.kill(os.getpid(), signal.SIGSEGV)
    return number


def _about_worker(_: int) -> tuple[list[str | None], bool, bool]:
    deaf = all(signal.getsignal(each) is signal.SIG_IGN for each in (signal.SIGINT, signal.SIGTERM))
    return [os.environ.get(name) for name in worker.THREAD_VARIABLES], deaf, "torch" in sys.modules


def _print(text: str) -> str:
    print(text, flush=True)
    os.system(f"echo {text}")
    return text


@pytest.fixture(params=[0, 1, 2])
def workers(request: pytest.FixtureRequest) -> int:
    return request.param


def test_results_come_in_order_and_a_pool_serves_many_streams(workers: int) -> None:
    with closing(Pool(workers, ahead=16)) as it:
        for count in (0, 1, CHUNK, 100):
            assert list(it.map(_double, range(count), str)) == [2 * number for number in range(count)]
        some = it.map(_double, iter(range(10**9)), str)
        assert [next(some) for _ in range(30)] == [2 * number for number in range(30)]
        some.close()
        assert list(it.map(_double, range(100), str)) == [2 * number for number in range(100)]


def test_what_the_function_raises_is_raised_at_its_place(workers: int) -> None:
    with closing(Pool(workers, ahead=16)) as it:
        results = it.map(_raise, range(3), str, too_slow=lambda item, seconds: -1)
        with pytest.raises(KeyError, match="number 0"):
            next(results)


def test_workers_have_one_thread_each_ignore_stops_and_know_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with closing(Pool(1, ahead=4)) as it:
        assert list(it.map(_about_worker, [0], str)) == [(["1", "1", "1"], True, False)]
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, set()) & {signal.SIGINT, signal.SIGTERM}


def test_what_a_decoder_prints_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with closing(Pool(1, ahead=4)) as it:
        assert list(it.map(_print, ["one", "two"], str)) == ["one", "two"]
    assert capfd.readouterr() == ("", "one\none\ntwo\ntwo\n")


def test_an_item_that_takes_too_long_is_replaced_and_the_others_are_done(workers: int) -> None:
    naps = [0.0] * 3 + [30.0] + [0.0] * (3 * CHUNK) + [30.0, 0.0]
    start = time.monotonic()
    with closing(Pool(workers, ahead=16, seconds_per_item=0.5)) as it:
        results = list(it.map(_nap, naps, str, too_slow=lambda item, seconds: (item, seconds)))
    assert results == [nap if nap == 0.0 else (30.0, 0.5) for nap in naps]
    assert time.monotonic() - start < 20


def test_without_a_replacement_an_item_may_take_any_time(workers: int) -> None:
    with closing(Pool(workers, ahead=4, seconds_per_item=0.1)) as it:
        assert list(it.map(_nap, [0.5], str)) == [0.5]


def test_items_that_stay_below_the_limit_are_not_added_up(workers: int) -> None:
    with closing(Pool(workers, ahead=16, seconds_per_item=1.0)) as it:
        assert list(it.map(_nap, [0.2] * 10, str, too_slow=lambda item, seconds: None)) == [0.2] * 10


def test_this_process_gives_up_where_too_many_of_its_threads_are_stuck() -> None:
    with closing(Pool(0, ahead=4, seconds_per_item=0.2)) as it:
        results = it.map(_nap, [5.0] * 9, str, too_slow=lambda item, seconds: None)
        with pytest.raises(WorkerDied, match=r"5.0: the last of 4 images that this process is still decoding"):
            list(results)


@pytest.mark.parametrize("workers", [1, 2])
def test_content_on_its_way_is_bounded_in_bytes(workers: int) -> None:
    sizes = [30, 50, 20, 300, 10] * 20
    on_the_way: list[int] = []
    with closing(Pool(workers, ahead=1000, ahead_bytes=100)) as it:
        put = it._line.put

        def observed(chunk: object) -> None:
            put(chunk)
            on_the_way.append(it._line.content)

        it._line.put = observed
        assert list(it.map(_nap_for_bytes, sizes, str, size=lambda size: size)) == sizes
    assert 100 in on_the_way
    assert max(size for size in on_the_way if size != 300) <= 100  # that item has no company
    assert it._line.content == 0


def test_a_worker_killed_in_the_midst_of_writing_a_result_is_an_error_and_no_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receive, is_half_written, go_on = worker.Process.receive, threading.Event(), threading.Event()

    def receive_late(process: worker.Process) -> object:
        process._process.stdout.peek(1)
        is_half_written.set()  # 4 MiB are more than a pipe holds
        assert go_on.wait(60)
        return receive(process)

    with closing(Pool(1, ahead=8)) as it:
        results = it.map(_large, [4 << 20] * 100, str)
        next(results)
        monkeypatch.setattr(worker.Process, "receive", receive_late)
        assert is_half_written.wait(60)
        (pid,) = it.pids
        os.kill(pid, signal.SIGKILL)
        go_on.set()
        with pytest.raises(WorkerDied, match=r"a decoding worker died at 4194304 or soon after: killed \(out of mem"):
            list(results)


def test_a_stopped_worker_that_is_killed_ends_the_run() -> None:
    with closing(Pool(2, ahead=64)) as it:
        results = it.map(_large, [1 << 20] * 10_000, str)
        for _ in range(32):
            next(results)
        pid = it.pids[0]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDied, match="killed"):
            list(results)


@pytest.mark.parametrize(
    ("function", "how"), [(_end, "ended with exit code 7"), (_crash, "crashed by SIGSEGV")], ids=["exit", "crash"]
)
def test_an_error_says_how_a_worker_died(function: Callable[[int], int], how: str) -> None:
    with closing(Pool(1, ahead=4)) as it, pytest.raises(WorkerDied, match=rf"died at 7 or soon after: {how}"):
        list(it.map(function, [7], str))


def test_a_worker_that_can_not_be_started_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with closing(Pool(1, ahead=4)) as it, pytest.raises(WorkerDied, match="can't be started: No such file"):
        list(it.map(_double, [1], str))
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 5\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with closing(Pool(2, ahead=4)) as it, pytest.raises(WorkerDied, match=r"started: ended with exit code 5 before"):
        list(it.map(_double, [1], str))


def test_an_item_that_can_not_be_sent_is_an_error_and_no_hang() -> None:
    with closing(Pool(1, ahead=4)) as it, pytest.raises(WorkerDied, match="can't be used: TypeError: cannot pickle"):
        list(it.map(str, [threading.Lock()], str))


SCRIPT = """
from seed_fast.data.decode import ImageDecoder
from seed_fast.data.image_processor import ImageProcessor
from seed_fast.data.shards import Entry

with ImageDecoder(ImageProcessor(16), 2, 64) as decoder:
    print(sum(image.error is not None for image in decoder.map([Entry("missing", "missing")] * 20)))
"""


def test_a_script_needs_no_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout, run.stderr) == (0, "20\n", "")


def test_a_pool_that_nobody_closes_ends_with_its_last_reference() -> None:
    it = Pool(1, ahead=4)
    next(it.map(_double, range(100), str))
    (pid,) = it.pids
    threads, hands = it._threads, it._hands
    del it
    for thread in threads:
        thread.join(timeout=20)
    assert hands[0].pid is None
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_kills_at_random_moments_never_hang() -> None:
    draws = random.Random(0)
    for _ in range(60):
        with closing(Pool(2, ahead=16)) as it:
            results = it.map(_large, [300_000] * 100_000, str)
            next(results)
            killer = threading.Timer(draws.random() * 0.2, lambda pids=it.pids: os.kill(pids[0], signal.SIGKILL))
            killer.start()
            with pytest.raises(WorkerDied, match="killed"):
                list(results)
            killer.join()
