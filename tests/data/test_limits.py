"""The page of the command names the limits that the code has."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from seed_fast import SeedConfig, SeedTokenizer, limits
from seed_fast.data.pool import MOST_STUCK
from seed_fast.model.config import MOST, MOST_OTHER

PAGE = Path(__file__).parents[2] / "docs" / "tokenize.md"
MiB = 1 << 20


@pytest.mark.parametrize(
    ("row", "value"),
    [
        (f"| {limits.ITEM_SECONDS:g} s | reading, decoding and resizing one image", 20),
        (f"| `PIL.Image.MAX_IMAGE_PIXELS`, {Image.MAX_IMAGE_PIXELS:,} | pixels", Image.MAX_IMAGE_PIXELS),
        (f"| {limits.MAX_SIDE:,} px | its longer side", limits.MAX_SIDE),
        (f"| {limits.MAX_SCANS} | scans of a JPEG", limits.MAX_SCANS),
        (f"| {limits.MAX_FILE_BYTES // (1024 * MiB)} GiB | an image file", 1),
        (f"| {limits.MAX_MEMBER_BYTES // MiB} MiB | an unpacked member", 256),
        (f"| {limits.IN_FLIGHT_BYTES // MiB} MiB | unpacked members on their way", 512),
        (f"| {limits.MAX_LINE_BYTES // MiB} MiB | a line of a list", 16),
        (f"| {limits.MAX_PICKLE_BYTES // MiB} MiB | an official pre-tokenised sample", 1),
        (
            f"| {MOST['vit_depth']}; {MOST['image_size']}; 2<sup>24</sup>; {MOST_OTHER:,} | layers",
            MOST["codebook_size"],
        ),
    ],
)
def test_the_page_names_the_limits(row: str, value: int) -> None:
    assert row in PAGE.read_text(encoding="utf-8")
    assert value > 0
    assert (MOST["codebook_size"], MOST_STUCK, limits.MAX_CONFIG_BYTES) == (1 << 24, 4, limits.MAX_LINE_BYTES)


def test_a_model_may_be_saved_into_a_folder_of_any_name(tmp_path: Path) -> None:
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    tok.save_pretrained(tmp_path / "m\udcff")
    assert SeedConfig.from_file(tmp_path / "m\udcff" / "config.json") == tok.config
