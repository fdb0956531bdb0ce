"""`seed-fast reconstruct` and `seed-fast draw --codes` with the small world's own diffusion model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from seed_fast import SeedTokenizer
from seed_fast.cli import app
from seed_fast.data import shapes
from seed_fast.generate.picture_files import read_picture

pytest.importorskip("diffusers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of diffusers about transformers and Python
DECODER = "examples/shapes-sd"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    folder = tmp_path / "scenes"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(shapes.render(shapes.scene(0, index, "test"), 64)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def again(scenes: Path, tmp_path: Path) -> Path:
    """The folder of a run over the scenes."""
    folder = tmp_path / "again"
    done = run("reconstruct", scenes, "--decoder", DECODER, "-o", folder, "--steps", 2, "--batch-size", 2)
    assert done.exit_code == 0, done.output
    return folder


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_images_become_pictures_that_carry_the_codes_of_seed_tiny(scenes: Path, again: Path) -> None:
    assert sorted(path.name for path in again.glob("*.png")) == ["000000.png", "000001.png", "000002.png", "sheet.png"]
    expected = SeedTokenizer.from_pretrained("seed-tiny").encode(sorted(scenes.glob("*.png"))).tolist()
    assert [read_picture(again / f"00000{number}.png")[1]["codes"] for number in range(3)] == expected


def test_a_bad_image_is_skipped_and_another_is_drawn(scenes: Path, tmp_path: Path) -> None:
    (scenes / "1.png").write_bytes(b"no image")
    done = run("reconstruct", scenes, "--decoder", DECODER, "-o", tmp_path / "out", "--steps", 1, "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout.splitlines()[-1])["pictures"] == 2
    assert "skipped: " in done.output
    assert "1.png" in done.output


def test_pictures_of_an_earlier_run_stay_unless_an_option_says_so(scenes: Path, again: Path) -> None:
    before = (again / "000000.png").read_bytes()
    refused = run("reconstruct", scenes, "--decoder", DECODER, "-o", again, "--steps", 1)
    assert refused.exit_code == 2
    assert (again / "000000.png").read_bytes() == before
    other = run("reconstruct", scenes, "--decoder", DECODER, "-o", again, "--steps", 1, "--resume")
    assert other.exit_code == 2
    assert "drawn by another run, which differs in steps" in other.output


def test_a_picture_of_somebody_else_in_the_folder_is_not_touched(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "out" / "000001.png")
    before = (tmp_path / "out" / "000001.png").read_bytes()
    done = run("reconstruct", scenes, "--decoder", DECODER, "-o", tmp_path / "out", "--steps", 1, "--overwrite")
    assert done.exit_code == 2
    assert "000001.png: is in the way" in done.output
    assert (tmp_path / "out" / "000001.png").read_bytes() == before


def test_the_codes_in_a_picture_draw_it_again_and_an_edit_another(again: Path, tmp_path: Path) -> None:
    codes = read_picture(again / "000001.png")[1]["codes"]
    shared = ("--decoder", DECODER, "--steps", 2, "--seed", 1)
    for name, edit in (("same", ()), ("set", ("--set", f"0={(codes[0] + 7) % 2048}")), ("prefix", ("--prefix", 4))):
        done = run("draw", "--codes", again / "000001.png", "--pictures", tmp_path / name, *shared, *edit)
        assert done.exit_code == 0, done.output
    same, changed, prefix = (pixels(tmp_path / name / "000000.png") for name in ("same", "set", "prefix"))
    assert np.abs(same - pixels(again / "000001.png")).max() <= 1, "the batch doesn't change it"
    assert np.abs(same - changed).max() > 1
    assert np.abs(same - prefix).max() > 1


def test_a_killed_run_goes_on_and_ends_with_the_same_files(scenes: Path, again: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    arguments = ["reconstruct", str(scenes), "--decoder", DECODER, "-o", str(folder), "--steps", "2"]
    arguments += ["--batch-size", "2"]
    with subprocess.Popen([sys.executable, "-m", "seed_fast", *arguments]) as process:
        while not (folder / "000000.png").exists():
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert run(*arguments, "--resume").exit_code == 0
    names = [path.name for path in sorted(again.iterdir()) if path.suffix == ".png"]
    assert [path.name for path in sorted(folder.iterdir()) if path.suffix == ".png"] == names
    for name in names:
        assert (folder / name).read_bytes() == (again / name).read_bytes(), name
