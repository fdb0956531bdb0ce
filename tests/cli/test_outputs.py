"""Where commands write: links are kept, standard output is one, and nothing that is no file is ever replaced."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from seed_fast._outputs import STDOUT, output_file, output_folder
from tests.pictures import encoded, picture, write_files

HOW = ([], ["--overwrite"], ["--resume"])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_files(tmp_path / "photos", {f"{number}.png": encoded(picture(number), "PNG") for number in range(2)})


def make(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as own:
            own.bind(str(path))
    elif kind == "link to a device":
        path.symlink_to("/dev/null")
    elif kind == "link to a pipe":
        os.mkfifo(path.with_name("target"))
        path.symlink_to("target")
    elif kind == "link to itself":
        path.symlink_to(path.name)


@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a device", "link to a pipe", "link to itself"])
def test_what_is_no_file_is_refused_and_stays(
    kind: str, photos: Path, tmp_path: Path, seed_fast: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("out"), kind)
    before = os.lstat("out")
    for how in HOW:
        for command in (
            ("tokenize", photos, "--workers", 0),
            ("tokenize", photos, "--workers", 0, "--format", "npz"),
            ("tokens", "build", "shapes:2", "--workers", 0),
        ):
            result = seed_fast(*command, "-o", "out", *how)
            assert result.exit_code == 2, result.output
            assert "out" in result.stderr or "target" in result.stderr or "/dev/null" in result.stderr
            assert os.path.samestat(os.lstat("out"), before)
    assert sorted(os.listdir()) == sorted({"out", "photos"} | ({"target"} if kind == "link to a pipe" else set()))


# Every other command that writes, up to its output. Each would fail with exit code 1 as soon as it loads a model, and
# measuring is forbidden: so exit code 2 says that the output was looked at before any work.
STAGE_2 = ("train", "stage2", "--target", "stage1-text", "--data", "shapes:8", "--model", "nowhere")
FILES = {
    "caption": ("caption", "photos", "--lm", "nowhere", "-o"),
    "draw": ("draw", "a cat", "--lm", "nowhere", "-o"),
    "profile": ("profile", "--model", "nowhere", "--trace"),
    "bench": ("bench", "ops", "--quick", "-o"),
}
FOLDERS = {
    "draw": ("draw", "a cat", "--lm", "nowhere", "--decoder", "nowhere", "--pictures"),
    "profile": ("profile", "--model", "nowhere", "-o"),
    "convert": ("convert", "nowhere"),
    "export": ("convert", "--to-official", "nowhere"),
    "train stage1": ("train", "stage1", "--data", "shapes:8", "--model", "nowhere", "-o"),
    "train stage2": (*STAGE_2, "-o"),
    "features": (*STAGE_2, "-o", "new", "--cache-features"),
    "train lm": ("train", "lm", "--data", "nowhere", "--model", "nowhere", "-o"),
    "eval lm": ("eval", "lm", "shapes:2", "--lm", "nowhere", "-o"),
}
EVERY = [
    *(pytest.param(command, "folder", id=f"file of {name}") for name, command in FILES.items()),
    *(pytest.param(command, "file", id=f"folder of {name}") for name, command in FOLDERS.items()),
]


@pytest.fixture
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: object, **__: object) -> None:
        raise AssertionError("the benchmarks were started")

    monkeypatch.setattr(subprocess, "run", measure)


@pytest.mark.parametrize(("command", "wrong"), EVERY)
@pytest.mark.usefixtures("photos", "nothing_measured")
def test_an_output_that_cannot_be_written_is_told_before_any_work(
    command: tuple, wrong: str, tmp_path: Path, seed_fast: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    for kind in ("pipe", "socket", "link to a device", "link to itself"):
        make(Path(kind), kind)
    (tmp_path / "locked").mkdir()
    access = os.access
    locked = {Path("locked"), tmp_path / "locked"}  # root may write into every folder
    monkeypatch.setattr(os, "access", lambda path, *mode, **ways: path not in locked and access(path, *mode, **ways))
    before = {name: os.lstat(name) for name in os.listdir()}
    for output in (wrong, "pipe", "socket", "link to a device", "link to itself", "file/below", "locked/new/out"):
        result = seed_fast(*command, output)
        assert result.exit_code == 2, (output, result.output)
        (line,) = result.stderr.splitlines()
        assert line.startswith("seed-fast: error: "), line
        assert output in line or (output == "link to a device" and "/dev/null" in line), line
    assert {name: os.lstat(name).st_ino for name in os.listdir()} == {name: at.st_ino for name, at in before.items()}
    assert not os.listdir("locked")


@pytest.mark.usefixtures("photos")
def test_a_link_is_where_the_benchmarks_write(
    tmp_path: Path, seed_fast: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results.json").symlink_to("target.json")
    asked: list[dict] = []

    def measure(command: list[str], **_: object) -> subprocess.CompletedProcess:
        asked.append(json.loads(command[-1]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", measure)
    assert seed_fast("bench", "ops", "--quick", "-o", tmp_path / "results.json").exit_code == 0
    assert asked[0]["output"] == str(tmp_path / "target.json")
    result = seed_fast("bench", "ops", "--quick", "-o", "-")
    assert (result.exit_code, len(asked)) == (2, 1)
    assert "--json prints the results there" in result.stderr


def test_a_link_stays_and_its_target_is_written(photos: Path, tmp_path: Path, seed_fast: Callable) -> None:
    (tmp_path / "disk").mkdir()
    for name in ("codes.jsonl", "new.jsonl"):
        (tmp_path / name).symlink_to(Path("disk") / name)
    (tmp_path / "disk" / "codes.jsonl").write_text("old")
    for name in ("codes.jsonl", "new.jsonl"):
        result = seed_fast("tokenize", photos, "-o", tmp_path / name, "--workers", 0, "--overwrite")
        assert result.exit_code == 0, result.output
        assert (tmp_path / name).is_symlink()
        assert len((tmp_path / "disk" / name).read_text().splitlines()) == 2
    assert sorted(os.listdir(tmp_path / "disk")) == ["codes.jsonl", "new.jsonl"]


def test_standard_output_takes_the_lines_and_nothing_else(photos: Path, tmp_path: Path) -> None:
    for name in ("-", "/dev/stdout"):
        command = [sys.executable, "-m", "seed_fast", "tokenize", str(photos), "--workers", "0", "-o", name]
        found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        paths = [json.loads(line)["path"] for line in found.stdout.splitlines()]
        assert paths == [f"{photos}/{number}.png" for number in range(2)]
        assert "2 images encoded" in found.stderr
        assert os.listdir(tmp_path) == ["photos"]


@pytest.mark.parametrize("option", ["--resume", "--overwrite", "--format=npz"])
def test_standard_output_is_no_file_to_go_on_with(option: str, photos: Path, seed_fast: Callable) -> None:
    result = seed_fast("tokenize", photos, "-o", "-", option)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "standard output" in result.stderr


def test_names_of_outputs(tmp_path: Path) -> None:
    assert output_file(Path("/dev/stdout")) == output_file(Path("-")) == STDOUT
    assert output_file(tmp_path / "new") == tmp_path / "new"
    assert output_folder(tmp_path) == tmp_path
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file" / "below", tmp_path / "a\0b", tmp_path):
        with pytest.raises(ValueError, match=r"must be a file name|can't be written"):
            output_file(wrong)
    with pytest.raises(ValueError, match="must be a folder, got a file"):
        output_folder(tmp_path / "file")
    assert stat.S_ISREG(os.stat(tmp_path / "file").st_mode)


@pytest.mark.parametrize("redirect", ["2>&-", "<&- 2>&-", "2>/dev/full", "2> >(true)", "<&- >&- 2>&-", ">&- 2>&-"])
def test_the_work_is_done_where_nobody_can_read_the_messages(redirect: str, photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"torn")
    command = f"'{sys.executable}' -m seed_fast tokenize photos -o out.jsonl --workers 1 {redirect}"
    code = subprocess.run(["bash", "-c", command], cwd=tmp_path, check=False, stdout=subprocess.DEVNULL).returncode
    assert code == 3
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "photos"]


@pytest.mark.parametrize("name", ["phtos/", "phtos/*.png", "photo-{0..9}.tar", "phtos.tar", "a.jpg"])
def test_an_input_that_is_not_there_leaves_nothing_behind(
    name: str, photos: Path, tmp_path: Path, seed_fast: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for options in ((), ("--format", "npz"), ("--resume",), ("--shard", "1/2")):
        result = seed_fast("tokenize", name, "-o", "out", "--workers", 0, *options)
        assert result.exit_code == 2
        assert name in result.stderr
        assert os.listdir() == ["photos"]
    assert seed_fast("tokenize", name, "photos/0.png", "-o", "out", "--workers", 0).exit_code == 3


def test_inputs_that_cannot_be_listed_leave_nothing_behind(tmp_path: Path, seed_fast: Callable) -> None:
    (tmp_path / "torn.tar").write_bytes(b"torn" * 300)
    result = seed_fast("tokenize", tmp_path / "torn.tar", "-o", tmp_path / "out", "--workers", 0)
    assert result.exit_code == 1
    assert f"bad input: {tmp_path}/torn.tar: " in result.stderr
    assert os.listdir(tmp_path) == ["torn.tar"]
