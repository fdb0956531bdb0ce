"""Pictures with their codes in PNG files, and which files of a folder a run may replace."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from seed_fast._files import OtherRun
from seed_fast.generate.picture_files import contact_sheet, encode_png, leftovers, read_picture

PICTURE = Image.new("RGB", (8, 8), (10, 20, 30))


def test_a_picture_comes_back_with_its_record(tmp_path: Path) -> None:
    record = {"codes": [1, 2047], "text": "ein Bär", "seed": 3}
    (tmp_path / "a.png").write_bytes(encode_png(PICTURE, record))
    picture, found = read_picture(tmp_path / "a.png")
    assert found == record
    assert picture.tobytes() == PICTURE.tobytes()


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"text", encode_png(PICTURE, {})[:60]])
def test_a_file_that_holds_no_codes_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png: must be a picture that seed-fast has drawn"):
        read_picture(tmp_path / "a.png")


def test_only_pictures_of_ours_are_leftovers(tmp_path: Path) -> None:
    ours = [tmp_path / name for name in ("000000.png", "000012.png", "1000000.png", "sheet.png")]
    for path in ours:
        path.write_bytes(encode_png(PICTURE, {"codes": [1]}))
    for name in ("1.png", "holiday.png", "000001.jpg"):
        PICTURE.save(tmp_path / name)
    assert leftovers(tmp_path) == sorted(ours)
    assert leftovers(tmp_path / "missing") == []


@pytest.mark.parametrize("name", ["000000.png", "000099.png", "sheet.png"])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_picture_of_somebody_else_is_never_replaced(tmp_path: Path, name: str, damaged: bool) -> None:
    PICTURE.save(tmp_path / name)
    if damaged:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    with pytest.raises(OtherRun, match=f"{name}: is in the way"):
        leftovers(tmp_path)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_sheet_shows_every_picture_beside_its_codes(count: int) -> None:
    colours = [(255, 30 * number, 0) for number in range(count)]
    rows = [
        (Image.new("RGB", (64, 64), (0, 0, 250)), [number] * 32, Image.new("RGB", (64, 64), colour))
        for number, colour in enumerate(colours)
    ]
    shown = {colour for _, colour in contact_sheet(rows).getcolors(1 << 20)}
    assert {(0, 0, 250), *colours} <= shown
