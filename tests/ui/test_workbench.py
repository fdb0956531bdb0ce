"""The workbench behind the page: pictures to codes, codes that are changed, captions; and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seed_fast import SeedTokenizer
from seed_fast.data import shapes
from seed_fast.ui.workbench import MAX_CAPTION, Workbench


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return Workbench(SeedTokenizer.from_pretrained("seed-tiny"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    Image.fromarray(shapes.render(shapes.scene(0, 0, "test"), 1000)).save(path)
    return path


def test_a_picture_has_the_codes_of_the_tokenizer_and_is_shown_small(bench: Workbench, picture: Path) -> None:
    encoded = bench.read(picture)
    assert encoded.codes == bench.tok.encode([picture])[0].tolist()
    assert encoded.picture.size == (512, 512)


def test_a_broken_file_is_named_without_its_folder(bench: Workbench, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with pytest.raises(ValueError, match=r"^broken\.png: "):
        bench.read(tmp_path / "broken.png")


@pytest.mark.parametrize("form", ["{}", "[{}]", "  {} \n"])
def test_codes_are_read_as_people_type_them(bench: Workbench, form: str) -> None:
    codes = list(range(32))
    assert bench.codes(form.format(" ".join(map(str, codes)))) == codes
    assert bench.codes(form.format(", ".join(map(str, codes)))) == codes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an image has 32 codes, got 0"),
        ("1 2 3", "an image has 32 codes, got 3"),
        ("1 " * 31 + "two", "codes must be integers between spaces, got 't'"),
        ("-1 " * 32, "codes must be integers between spaces, got '-'"),
        ("1.5 " * 32, r"codes must be integers between spaces, got '\.'"),
        ("7 " * 31 + "2048", "code 2048 at position 31 must be 0 to 2047"),
        ("9" * 400 + " 1" * 31, "an image has 32 codes"),
    ],
)
def test_other_text_is_refused(bench: Workbench, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench.codes(text)


def test_one_code_is_changed_and_the_others_stay(bench: Workbench) -> None:
    codes = list(range(32))
    assert bench.with_code(codes, 3, 2047) == [0, 1, 2, 2047, *range(4, 32)]
    assert codes == list(range(32))
    with pytest.raises(ValueError, match="position must be 0 to 31, got 32"):
        bench.with_code(codes, 32, 0)
    with pytest.raises(ValueError, match="code 2048 at position 0 must be 0 to 2047"):
        bench.with_code(codes, 0, 2048)


def test_the_nearest_codes_are_those_of_the_codebook(bench: Workbench) -> None:
    codebook = bench.tok.quantizer.codebook.detach().double().numpy()
    (near, *_) = bench.nearest([5] * 32, count=4)
    distances = np.linalg.norm(codebook - codebook[5], axis=1)
    expected = [int(code) for code in np.argsort(distances, kind="stable") if code != 5][:4]
    assert (near.position, near.code) == (0, 5)
    assert [distances[code] for code, _ in near.nearest] == pytest.approx(distances[expected], abs=1e-6)
    assert [distance for _, distance in near.nearest] == pytest.approx(distances[expected], abs=1e-6)


def test_what_is_not_there_is_named(bench: Workbench) -> None:
    with pytest.raises(ValueError, match="started without a diffusion model, which"):
        bench.picture([0] * 32)
    with pytest.raises(ValueError, match="started without a language model"):
        bench.draw("a small red star on a white background")


@pytest.mark.parametrize(
    ("caption", "message"), [("  ", "must not be empty"), ("a" * (MAX_CAPTION + 1), "at most 1000")]
)
def test_a_caption_has_a_length(bench: Workbench, caption: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Workbench(bench.tok, lm=object()).draw(caption)  # type: ignore[arg-type]


def test_a_caption_becomes_the_codes_that_draw_writes(bench: Workbench) -> None:
    pytest.importorskip("transformers")
    from seed_fast.generate.drawing import draw
    from seed_fast.lm.model import load

    lm = load("examples/seed-opt-tiny")
    caption = "a small red star at the top left on a white background"
    torch.manual_seed(0)
    assert Workbench(bench.tok, lm=lm).draw(f" {caption}\n") == draw(*lm, [caption])[0].tolist()
