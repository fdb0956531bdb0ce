"""Progress and output on one terminal: every line of output stands alone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

pytest.importorskip("peft")

from tests.examples import example

COLUMNS = 400  # wide enough that no line of output is wrapped


def on_a_terminal(*arguments: object, cwd=None) -> tuple[int, str]:
    """(exit code, bytes that came to the terminal) of a command whose three streams are one terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "seed_fast", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=environment)
    os.close(theirs)
    pieces = []
    with contextlib.suppress(OSError):  # the terminal is closed
        while piece := os.read(ours, 1 << 16):
            pieces.append(piece)
    os.close(ours)
    return process.wait(), b"".join(pieces).decode()


def screen(text: str) -> list[str]:
    """The lines that a person sees in the end: returns and erasures done, later characters over earlier ones."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|.", text, re.DOTALL):
        if part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part == "\x1b[A":
            row = max(0, row - 1)
        elif part == "\x1b[K":
            lines[row] = lines[row][:column]
        elif part[0] != "\x1b":
            lines[row] = lines[row].ljust(column)[:column] + part + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def test_the_screen_is_what_a_terminal_shows():
    assert screen("a bar\r     \rout\nbar 1\rbar 2\n") == ["out", "bar 2", ""]
    assert screen("a bar{json}\n") == ["a bar{json}", ""], "what is asserted to be absent below"


@pytest.fixture(scope="module")
def folder():
    return example("train_seed_opt_tiny").FOLDER


def test_drawings_stand_on_lines_of_their_own(folder):
    texts = ["a small red star on a white background", "a big blue circle on a black background"]
    code, text = on_a_terminal("draw", *texts, "--lm", folder, "--batch-size", 1)
    assert code == 0, text
    shown = screen(text)
    assert [json.loads(line)["text"] for line in shown if line.startswith("{")] == texts, shown
    assert not [line for line in shown if "{" in line[1:] or ("images/s" in line and '"codes"' in line)], shown
    assert any("2/2" in line for line in shown), "the number of texts is known"


def test_captions_and_what_is_skipped_stand_on_lines_of_their_own(folder, tmp_path):
    from PIL import Image

    for number in range(2):
        Image.radial_gradient("L").save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"torn")
    code, text = on_a_terminal("caption", ".", "--lm", folder, "--batch-size", 1, "--max-tokens", 4, cwd=tmp_path)
    assert code == 3, text
    shown = screen(text)
    assert [json.loads(line)["path"] for line in shown if line.startswith("{")] == ["./0.png", "./1.png"], shown
    assert len([line for line in shown if line.startswith("seed-fast: skipped: ./2.png")]) == 1, shown
    assert not [line for line in shown if "{" in line[1:]], shown
