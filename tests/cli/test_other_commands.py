"""Help, version, info and convert."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

import seed_fast as package
from seed_fast.cli._options import DtypeName
from seed_fast.model.dtypes import DTYPE_BY_NAME
from tests.pictures import encoded, picture, write_files


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from seed_fast.cli import app; print({'torch', 'numpy', 'PIL'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_help_shows_examples_and_exit_codes(seed_fast: Callable) -> None:
    text = seed_fast("tokenize", "--help").stdout
    assert "\n    seed-fast tokenize photos/ -o codes.jsonl\n" in text
    assert "\n    3    done, but some images or inputs were bad\n" in text
    assert {"tokenize", "convert", "info"} <= set(seed_fast("--help").stdout.split())


def test_version_is_the_packages(seed_fast: Callable) -> None:
    assert seed_fast("--version").stdout == f"seed-fast {package.__version__}\n"


def test_info_is_text_or_json(seed_fast: Callable) -> None:
    assert "nearest_code" in seed_fast("info").stdout
    assert json.loads(seed_fast("info", "--json").stdout)["versions"]["seed_fast"] == package.__version__


def test_convert_writes_a_folder_that_tokenize_takes(
    tmp_path: Path, seed_fast: Callable, records: Callable, tok
) -> None:
    tok.save_pretrained(tmp_path / "saved")
    result = seed_fast("convert", tmp_path / "saved", tmp_path / "converted")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'converted'}\n")
    image = write_files(tmp_path, {"1.png": encoded(picture(1), "PNG")}) / "1.png"
    seed_fast("tokenize", image, "-o", tmp_path / "codes", "--model", tmp_path / "converted", "--workers", 0)
    assert records(tmp_path / "codes") == {str(image): tok.encode(image)[0].tolist()}


@pytest.mark.parametrize(("arguments", "code"), [(["only-one"], 2), (["no-such-file.pt", "dest"], 1)])
def test_convert_tells_what_is_wrong(
    arguments: list[str], code: int, tmp_path: Path, seed_fast: Callable, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = seed_fast("convert", *arguments)
    assert result.exit_code == code
    assert result.stderr.startswith("seed-fast: ")
    assert not os.listdir(tmp_path)


def test_a_terminal_gets_a_bar_with_images_per_second(tmp_path: Path) -> None:
    image = write_files(tmp_path, {"1.png": encoded(picture(1), "PNG"), "2.png": b""})
    arguments = ["-m", "seed_fast", "tokenize", str(image), "-o", str(tmp_path / "codes"), "--workers", "0"]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    run = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # Linux: the other end is closed
        pass
    finally:
        os.close(ours)
    assert run.wait() == 3
    assert b"images/s" in shown
    assert shown.count(b"skipped: ") == 1


def test_the_choices_of_dtype_are_the_table_of_the_models() -> None:
    assert get_args(DtypeName) == tuple(DTYPE_BY_NAME)
