"""What was measured is kept, and a file that can't be trusted is measured again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest
import torch

from seed_fast import SeedTokenizer, info
from seed_fast.model import calibration, cpu_products


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("SEED_FAST_CACHE", str(tmp_path))
    monkeypatch.delenv("SEED_FAST_PRODUCTS", raising=False)
    calibration.forget()
    yield
    calibration.forget()


@pytest.fixture
def ask():
    """Ask a question; how often it was measured is in `times`."""

    class Ask:
        times = 0

        def measure(self):
            self.times += 1
            return {"value": self.times}

        def __call__(self, again=False, process=True):
            if process:
                calibration.forget()
            is_answer = lambda found: isinstance(found.get("value"), int)  # noqa: E731
            return calibration.answer("a question", self.measure, is_answer, again=again)["value"]

    return Ask()


def kept(tmp_path):
    (file,) = (tmp_path / "calibration").iterdir()
    return file


def test_it_is_measured_once_and_read_by_the_next_process(ask, tmp_path):
    assert [ask(), ask(), ask(process=False)] == [1, 1, 1]
    assert json.loads(kept(tmp_path).read_text())["machine"] == calibration.machine()


def test_a_disturbed_measurement_is_tried_again_and_the_quietest_is_kept(tmp_path, monkeypatch):
    disturbances = iter([3.0, 2.0, 4.0, 1.1, 9.0])

    def measure():
        disturbance = next(disturbances)
        times = iter([0.0] * 3 + [1.0] + [disturbance] * 100)
        monkeypatch.setattr(calibration, "_seconds", lambda *_: next(times) or 1.0)
        calibration.medians({"a": lambda: None}, "a", 10.0)
        return {"value": disturbance}

    got = []
    for _ in range(6):
        calibration.forget()
        got.append(calibration.answer("a question", measure, lambda found: True)["value"])
    assert got == [3.0, 2.0, 2.0, 1.1, 1.1, 1.1]
    assert json.loads(kept(tmp_path).read_text())["tries"] == 4


def test_a_way_that_is_slow_in_every_turn_is_measured_again(tmp_path, monkeypatch):
    slow = iter([74.0, 1.2])

    def measure():
        factor = next(slow)
        monkeypatch.setattr(calibration, "_seconds", lambda call, *_: call())
        _, gains = calibration.medians({"a": lambda: factor, "b": lambda: 1.0}, "a", 0.01)
        return gains

    for expected in (74.0, 1.2, 1.2):
        calibration.forget()
        assert calibration.answer("a question", measure, lambda found: True)["b"] == expected


def test_an_answer_that_codes_depend_on_stays_the_first(tmp_path, monkeypatch):
    values = iter([1, 2])

    def measure():
        monkeypatch.setattr(calibration, "_disturbance", 5.0)
        return {"value": next(values)}

    got = []
    for _ in range(2):
        calibration.forget()
        got.append(calibration.answer("a question", measure, lambda found: True, settled=True)["value"])
    assert got == [1, 1]


def test_a_machine_that_is_never_quiet_measures_a_few_times_only(tmp_path, monkeypatch):
    tries = []

    def measure():
        tries.append(1)
        monkeypatch.setattr(calibration, "_disturbance", 5.0)
        return {"value": 1}

    for _ in range(9):
        calibration.forget()
        calibration.answer("a question", measure, lambda found: True)
    assert len(tries) == calibration.MOST_TRIES


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"answer": {"value": 7}}', b"[" * 100000],
    ids=["empty", "cut", "list", "null", "bytes", "of nothing", "deep"],
)
def test_a_damaged_file_is_measured_again_and_replaced(ask, tmp_path, content):
    ask()
    kept(tmp_path).write_bytes(content)
    assert [ask(), ask()] == [2, 2]


@pytest.mark.parametrize("change", ["schema", "question", "machine", "answer"])
def test_a_foreign_file_is_measured_again(ask, tmp_path, change):
    ask()
    content = json.loads(kept(tmp_path).read_text())
    content[change] = {"value": "7"}
    kept(tmp_path).write_text(json.dumps(content))
    assert ask() == 2


def test_another_machine_has_another_file(ask, tmp_path, monkeypatch):
    ask()
    for change in ({"processor": "another"}, {"isa": "AVX"}, {"torch": "9"}, {"threads": 99}, {"limits": {"A": "1"}}):
        here = calibration.machine() | change
        with monkeypatch.context() as patch:
            patch.setattr(calibration, "machine", lambda here=here: here)
            ask()
    assert ask.times == 6
    assert len(list((tmp_path / "calibration").iterdir())) == 6


def test_measuring_again_is_done_once_per_process_and_kept(ask):
    assert [ask(), ask(again=True), ask(again=True, process=False), ask(process=False), ask()] == [1, 2, 2, 2, 2]


def test_a_folder_that_cannot_be_written_costs_a_measurement_and_a_line_for_debuggers(ask, tmp_path, caplog):
    (tmp_path / "calibration").write_text("a file where the folder should be")
    with caplog.at_level("DEBUG", "seed_fast.model.calibration"):
        assert [ask(), ask()] == [1, 2]
    assert "not kept" in caplog.text
    assert all(record.levelname == "DEBUG" for record in caplog.records)


def test_two_that_ask_at_once_leave_one_whole_file(tmp_path):
    path, about = tmp_path / "calibration" / "x.json", {"schema": 1, "answer": {"value": list(range(5000))}}
    threads = [threading.Thread(target=calibration._write, args=(path, about)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads(path.read_text()) == about
    assert os.listdir(path.parent) == ["x.json"]


@pytest.fixture
def clock(monkeypatch):
    """A clock that calls turn forward."""

    class Clock:
        now = 0.0

        def call(self, seconds):
            def turn():
                self.now += seconds

            return turn

    clock = Clock()
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: clock.now)
    return clock


def test_the_faster_call_gains_and_the_baseline_does_not(clock):
    calls = {"slow": clock.call(0.004), "fast": clock.call(0.001)}
    seconds, gains = calibration.medians(calls, "slow", 0.05)
    assert gains == pytest.approx({"slow": 1, "fast": 4})
    assert seconds == pytest.approx({"slow": 0.004, "fast": 0.001})


def test_a_slow_call_does_not_hold_up_a_plan(clock):
    calibration.medians({"slow": clock.call(30.0)}, "slow", 0.1)
    assert clock.now == pytest.approx(90), "one to warm up, one to see how long it takes, one that counts"


@pytest.mark.skipif(not cpu_products.onednn_takes(torch.device("cpu"), torch.float32), reason="no oneDNN here")
def test_info_shows_choices_and_rates_once_there_are_any(monkeypatch):
    assert "not yet: the first tok.fast() on this machine does it" in info.render(info.collect())
    monkeypatch.setattr(cpu_products, "SECONDS", 0.01)
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    assert tok.fast().products == "measured"
    found = info.collect()["products"]
    assert json.loads(json.dumps(found)) == found
    assert set(found["measured"]["float32 products"]) == {"small", "large"}
    text = info.render(info.collect())
    assert "large weights, many rows: " in text
    assert "onednn-blocked+gelu" in text
    assert "GFLOP/s" in text
    monkeypatch.setenv("SEED_FAST_PRODUCTS", "onednn")
    assert info.collect()["products"]["setting"] == "onednn"
    monkeypatch.setenv("SEED_FAST_PRODUCTS", "blas")
    assert "got 'blas'" in info.render(info.collect())


def test_what_one_process_measured_another_reads(tmp_path):
    code = (
        "import logging; from seed_fast import SeedTokenizer; from seed_fast.model import calibration, cpu_products;"
        "cpu_products.SECONDS = 0.01; calibration.QUIET = float('inf'); real = calibration.medians; count = [];"
        "calibration.medians = lambda *a, **k: count.append(1) or real(*a, **k);"
        "SeedTokenizer.from_pretrained('seed-tiny').fast(); print(len(count))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    ]
    assert int(runs[0]) > 0
    assert runs[1] == "0"
