"""Outputs that can't be written, or that another process writes: one line that names them, and nothing lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from seed_fast import SeedTokenizer, _files
from seed_fast._files import OutputError, locked_folder, replace_folder_files, replacing, staging_folder, write_beside
from seed_fast.data.tokens import open_tokens
from seed_fast.distributed import Ranks
from seed_fast.model import calibration
from seed_fast.train.session import held_output
from tests.pictures import encoded, picture, write_files


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel's limit on the size of a file stands in for a full disk: a write fails in the same places."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_files(tmp_path / "photos", {f"{n:03d}.png": encoded(picture(n), "PNG") for n in range(9)})


TRAINING = ("--target", "stage1-text", "--batch-size", 4, "--epochs", 1, "--epoch-steps", 1, "--device", "cpu",
            "--workers", 0, "--warmup-steps", 1)  # fmt: skip
STAGE_2 = ("train", "stage2", "--data", "shapes:8", "-o", "{out}", "--model", "{model}", *TRAINING)
FULL = {
    "tokenize": (600, ("tokenize", "{photos}", "-o", "{out}/codes", "--workers", 0, "--batch-size", 1)),
    "npz": (600, ("tokenize", "{photos}", "-o", "{out}", "--workers", 0, "--batch-size", 1, "--format", "npz")),
    "tokens": (600, ("tokens", "build", "shapes:9", "-o", "{out}", "--workers", 0, "--batch-size", 1)),
    "convert": (4000, ("convert", "{model}", "{out}/model")),
    "export": (4000, ("convert", "--to-official", "{model}", "{out}/model")),
    "train": (
        4000,
        (
            "train",
            "stage2",
            "--data",
            "shapes:8",
            "--target",
            "stage1-text",
            "-o",
            "{out}",
            "--model",
            "{model}",
            *TRAINING,
        ),
    ),
}


@pytest.mark.parametrize("command", FULL)
def test_a_full_disk_is_one_line_with_the_name_of_the_output(
    command: str, photos: Path, tmp_path: Path, seed_fast: Callable
) -> None:
    size, arguments = FULL[command]
    model = Path(_files.__file__).parent / "assets" / "seed-tiny"
    out = tmp_path / "out"
    out.mkdir()
    with files_of_at_most(size):
        result = seed_fast(*(str(each).format(photos=photos, out=out, model=model) for each in arguments))
    assert result.exit_code == 1, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"seed-fast: error: {out}"), result.stderr
    assert last.endswith(os.strerror(errno.EFBIG))
    if command in ("convert", "export", "train"):
        assert not [path for path in out.rglob("*") if ".partial" in path.name or ".tmp" in path.name]


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_an_error_of_any_step_of_a_write_names_the_file(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file"
    write_beside(path, b"old")
    target = {"write": (_files, "write_all"), "fsync": (os, "fsync"), "rename": (os, "replace")}[step]
    monkeypatch.setattr(*target, full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_beside(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"], "nothing is left beside it"


def test_two_that_write_the_same_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        first.write(b"first")
        second.write(b"second, and longer")
    assert path.read_bytes() == b"first", "the last one to end wins, and each is whole"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_writer_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    script = (
        "import os, sys, signal, pathlib; from seed_fast._files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "file")], check=False)
    (left,) = os.listdir(tmp_path)
    assert left.startswith("file.")
    with replacing(tmp_path / "other") as file:
        file.write(b"whole")
        assert left not in os.listdir(tmp_path)
        script = script.partition("\n")[0] + "\nwith replacing(pathlib.Path(sys.argv[1])): pass"
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "third")], check=True)
    assert sorted(os.listdir(tmp_path)) == ["other", "third"]
    assert (tmp_path / "other").read_bytes() == b"whole"


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replace_folder_files(tmp_path / "new") as staging:
        (staging / "a" / "b").touch()
    assert not os.listdir(tmp_path)
    with replace_folder_files(tmp_path / "new") as staging:
        (staging / "deep").mkdir()
        (staging / "deep" / "a").touch()
        assert not (tmp_path / "new").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "deep", "a"]


def test_a_lost_output_folder_is_one_line(
    photos: Path, tmp_path: Path, seed_fast: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    replace = os.replace

    def lost(source: Path, target: Path) -> None:
        if Path(target).name == "codes":
            Path(source).unlink()
        replace(source, target)

    monkeypatch.setattr(os, "replace", lost)
    result = seed_fast("tokenize", photos, "-o", out / "codes", "--workers", 0)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"seed-fast: error: {out}/codes.partial: No such file or directory"


def test_overwriting_beside_a_running_job_is_refused_and_the_job_loses_nothing(
    tmp_path: Path, seed_fast: Callable
) -> None:
    photos = write_files(tmp_path / "photos", {f"{n:04d}.png": encoded(picture(0), "PNG") for n in range(150)})
    out = tmp_path / "out"
    command = ("tokenize", photos, "-o", out, "--format", "npz", "--workers", 0, "--batch-size", 1)
    with running(command, out / "codes.00000.partial") as first:
        for how in ("--overwrite", "--resume"):
            second = seed_fast(*command, how)
            assert second.exit_code == 2
            assert f"error: {out}: another process is writing it" in second.stderr
        stdout, stderr = first.communicate()
    assert first.returncode == 0, stderr
    assert "150 images encoded" in stdout
    with np.load(out / "codes.00000.npz") as part:
        assert [Path(path).name for path in part["paths"]] == sorted(os.listdir(photos))


def test_two_builds_into_one_folder_are_one_and_a_clear_refusal(tmp_path: Path, seed_fast: Callable) -> None:
    out = tmp_path / "out"
    command = ("tokens", "build", "shapes:200", "-o", out, "--workers", 0, "--batch-size", 1)
    with running(command, out / "tokens.00000.partial") as first:
        for how in ("--overwrite", "--resume"):
            second = seed_fast(*command, how)
            assert second.exit_code == 2
            assert f"error: {out}: another process is writing it" in second.stderr
        _, stderr = first.communicate()
    assert first.returncode == 0, stderr
    assert len(open_tokens(out)) == 200


class running(ExitStack):
    """A command in a process of its own, when it has begun to write."""

    def __init__(self, command: tuple, partial: Path) -> None:
        super().__init__()
        self._command = [sys.executable, "-m", "seed_fast", *map(str, command)]
        self._partial = partial

    def __enter__(self) -> subprocess.Popen:  # type: ignore[override]
        super().__enter__()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = self.enter_context(subprocess.Popen(self._command, text=True, **pipes))
        deadline = time.monotonic() + 120
        while not (self._partial.exists() and self._partial.stat().st_size):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return process


def test_a_second_training_into_one_folder_is_refused(tmp_path: Path, seed_fast: Callable) -> None:
    with locked_folder(tmp_path):
        result = seed_fast(*(str(each).format(out=tmp_path, model="seed-tiny") for each in STAGE_2))
    assert result.exit_code == 2
    assert f"error: {tmp_path}: another process is writing it" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to_official", [False, True])
def test_a_second_conversion_into_one_folder_is_refused(to_official: bool, tmp_path: Path, seed_fast: Callable) -> None:
    model = Path(_files.__file__).parent / "assets" / "seed-tiny"
    (tmp_path / "out").mkdir()
    with staging_folder(tmp_path / "out" / ".partial") as staging:
        (staging / "theirs").touch()
        result = seed_fast("convert", *["--to-official"] * to_official, model, tmp_path / "out")
        assert (staging / "theirs").exists()
    assert result.exit_code == 2
    assert "another process is writing it" in result.stderr
    assert not list((tmp_path / "out").iterdir())


def test_what_a_killed_process_staged_is_removed_by_the_next_run(tmp_path: Path) -> None:
    for name in (".partial", ".partial-4f2a", "base/.partial"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.safetensors").touch()
    (tmp_path / "kept").touch()
    alone = Ranks(0, 1, torch.device("cpu"))
    refused = pytest.raises(OutputError, match="another process is writing it")
    with held_output(tmp_path, alone), refused, held_output(tmp_path, alone):
        pass
    assert sorted(os.listdir(tmp_path)) == ["base", "kept"]
    with held_output(tmp_path, alone):
        pass


def test_processes_that_measure_at_once_all_keep_their_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEED_FAST_CACHE", str(tmp_path))
    calibration.forget()
    script = (
        "import sys; from seed_fast.model import calibration\n"
        "for n in range(40): calibration.answer(f'{n}', lambda: {'a': sys.argv[1]}, lambda found: True)"
    )
    started = [subprocess.Popen([sys.executable, "-c", script, str(n)], stderr=subprocess.PIPE) for n in range(3)]
    for process in started:
        assert process.communicate()[1] == b""
        assert process.returncode == 0
    assert len(calibration.answers()) == 40
    assert {path.suffix for path in calibration.folder().iterdir()} == {".json"}


def test_files_of_a_killed_save_do_not_get_into_the_next(tmp_path: Path) -> None:
    (tmp_path / ".partial" / "deep").mkdir(parents=True)
    (tmp_path / ".partial" / "deep" / "old").touch()
    with replace_folder_files(tmp_path) as staging:
        (staging / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]


def test_a_folder_that_was_saved_while_another_process_waited_is_not_emptied(tmp_path: Path) -> None:
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    tok.save_pretrained(tmp_path / "model")
    with staging_folder(tmp_path / ".model.partial") as staging:
        os.rename(staging, tmp_path / "other")
        (tmp_path / ".model.partial").mkdir()  # the next one's
    assert (tmp_path / ".model.partial").is_dir()
    assert (tmp_path / "other").is_dir()
    assert sorted(os.listdir(tmp_path / "model")) == ["README.md", "config.json", "model.safetensors"]


@pytest.fixture
def no_extras(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As after `pip install seed_fast` without extras."""
    for name in ("transformers", "peft"):
        for module in [each for each in sys.modules if each.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, name, None)
    for module in [each for each in sys.modules if each.startswith(("seed_fast.lm.", "seed_fast.train.lm"))]:
        monkeypatch.delitem(sys.modules, module)


@pytest.mark.parametrize(
    "command",
    [
        ("train", "lm", "--data", "{tmp}", "--model", "{tmp}", "-o", "{tmp}/out"),
        ("caption", "{tmp}", "--lm", "{tmp}"),
        ("draw", "a cat", "--lm", "{tmp}"),
        ("eval", "lm", "--lm", "{tmp}"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
@pytest.mark.usefixtures("no_extras")
def test_a_missing_extra_is_one_line_that_installs_it(command: tuple, tmp_path: Path, seed_fast: Callable) -> None:
    result = seed_fast(*(each.format(tmp=tmp_path) for each in command))
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("seed-fast: error: this needs ")
    assert lines[0].endswith(", which is not installed: pip install 'seed_fast[train]'")
