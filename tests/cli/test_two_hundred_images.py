"""A folder of 200 real and broken images through the command, with the embedded model."""

from __future__ import annotations

import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pictures import broken_files, encoded, good_files, write_files

COUNT = 200
DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def photographs(count: int) -> dict[str, bytes]:
    """Crops of the photographs inside scikit-image, in three file formats."""
    from PIL import Image

    data = Path(pytest.importorskip("skimage").__file__).parent / "data"
    sources = [
        Image.open(data / name).convert("RGB") for name in ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")
    ]
    luck, files = random.Random(0), {}
    for number in range(count):
        image, kind = sources[number % len(sources)], ("JPEG", "PNG", "WEBP")[number % 3]
        left, top = luck.randrange(image.width - 200), luck.randrange(image.height - 200)
        crop = image.crop((left, top, left + luck.randrange(80, 200), top + luck.randrange(80, 200)))
        files[f"photo-{number:03d}.{kind.lower()}"] = encoded(crop, kind)
    return files


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str], set[str]]:
    """The folder, and the paths of the good and of the broken files in it."""
    folder = tmp_path_factory.mktemp("mixed")
    broken = {f"{seed}/{name}": data for seed in (1, 2) for name, data in broken_files(seed).items()}
    good = {f"{seed}/good-{name}": data for seed in (1, 2) for name, data in good_files(seed).items()}
    good |= photographs(COUNT - len(good) - len(broken))
    write_files(folder, good | broken)
    assert len(good) + len(broken) == COUNT
    return folder, {f"{folder}/{name}" for name in good}, {f"{folder}/{name}" for name in broken}


def test_the_good_get_their_codes_and_each_bad_one_a_line(
    mixed: tuple[Path, set[str], set[str]], tmp_path: Path, seed_fast: Callable, records: Callable, tok
) -> None:
    folder, good, broken = mixed
    result = seed_fast("tokenize", folder, "-o", tmp_path / "codes.jsonl", "--json", "--workers", 1)
    found = records(tmp_path / "codes.jsonl")
    assert result.exit_code == 3
    assert found.keys() == good
    assert list(found) == sorted(found)
    for path in good:
        assert tok.encode(path).tolist() == [found[path]], path
    skipped = [line for line in result.stderr.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == len(broken)
    for path in broken:
        assert sum(line.startswith(f"skipped: {path}: ") for line in skipped) == 1, path
    summary = json.loads(result.stdout)
    assert (summary["written"], summary["skipped"], summary["exit_code"]) == (len(good), len(broken), 3)
    assert os.listdir(tmp_path) == ["codes.jsonl"]


def test_photographs_have_the_codes_of_the_modules_under_every_resize(
    tmp_path: Path, seed_fast: Callable, records: Callable
) -> None:
    """Whole photographs, those of `make demo`, through the inference plan and through the modules."""
    data = Path(pytest.importorskip("skimage").__file__).parent / "data"
    photographs = [data / name for name in runpy.run_path(str(DEMO))["PHOTOGRAPHS"] if (data / name).is_file()]
    assert len(photographs) > 5
    for resize in ("bicubic", "bilinear_crop"):
        for plan in ("fast", "plain"):
            options = ("--plan", plan, "--resize", resize, "--workers", 0, "--overwrite")
            assert seed_fast("tokenize", *photographs, "-o", tmp_path / plan, *options).exit_code == 0
        assert records(tmp_path / "fast") == records(tmp_path / "plain")
        assert len(records(tmp_path / "fast")) == len(photographs)


def kill_until_done(
    command: list[str], output: Path, kills: int, luck: random.Random, workers: str
) -> tuple[subprocess.CompletedProcess, int]:
    """Kill the command at random moments after it began to write, then let it finish."""
    partial, killed = output.with_name(output.name + ".partial"), 0
    arguments = [*command, "--resume", "--json", "--workers", workers]
    for _ in range(kills):
        before = partial.stat().st_size if partial.exists() else -1
        with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
            while run.poll() is None and (partial.stat().st_size if partial.exists() else -1) <= before:
                time.sleep(0.002)
            time.sleep(luck.uniform(0, 0.05))
            run.send_signal(signal.SIGKILL)
        killed += run.returncode == -signal.SIGKILL
    return subprocess.run(arguments, check=False, capture_output=True, text=True), killed


@pytest.mark.parametrize(
    ("kills", "workers"),
    [(2, "0"), pytest.param(15, "0", marks=pytest.mark.slow), pytest.param(15, "2", marks=pytest.mark.slow)],
)
def test_sigkill_at_random_moments_changes_nothing(
    mixed: tuple[Path, set[str], set[str]], tmp_path: Path, records: Callable, tok, kills: int, workers: str
) -> None:
    folder, good, broken = mixed
    output = tmp_path / "codes.jsonl"
    command = [sys.executable, "-m", "seed_fast", "tokenize", str(folder), "-o", str(output), "--batch-size", "3"]
    last, killed = kill_until_done(command, output, kills, random.Random(kills), workers)
    assert killed >= 1, "the test must interrupt the command to mean anything"
    assert last.returncode == 3, last.stderr
    summary = json.loads(last.stdout)
    assert summary["resumed"] + summary["written"] == len(good)
    assert summary["skipped"] == len(broken)
    for path in broken:
        assert f"skipped: {path}: " in last.stderr
    found = records(output)
    assert list(found) == sorted(good), "in order, none lost, none doubled"
    for path in sorted(good)[::5]:
        assert tok.encode(path).tolist() == [found[path]], path
    assert os.listdir(tmp_path) == ["codes.jsonl"]
