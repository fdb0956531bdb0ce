"""`seed-fast ui` as a process: it prints an address, answers there, and ends at once when it is stopped."""

from __future__ import annotations

import importlib.util
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")


@pytest.fixture
def started():
    """A function that starts the command; what still runs is killed when the test ends."""
    running = []

    def start(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "seed_fast", "ui", *arguments]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_the_page_answers_on_this_machine_until_it_is_stopped(started, number, code):
    process = started("--port", "0")
    lines = []
    while not (found := re.search(r"http://127\.0\.0\.1:\d+/", lines[-1] if lines else "")):
        lines.append(process.stderr.readline())
        assert lines[-1], "".join(lines)
    with urllib.request.urlopen(found[0], timeout=30) as answer:
        assert b"seed_fast" in answer.read()
    process.send_signal(number)
    assert process.wait(timeout=30) == code


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(started):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        process = started("--port", str(port))
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == (
        f"seed-fast: error: port {port} of 127.0.0.1: it is taken, or not to be had on this machine"
    )
