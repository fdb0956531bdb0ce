"""Where pictures and captions come from: every form of data, what is wrong with it, and augmentation."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seed_fast.data import augment
from seed_fast.data.image_processor import ImageProcessor
from seed_fast.data.samples import View, load
from seed_fast.data.shards import ShardError
from seed_fast.data.sources import open_source
from tests.data.test_shards import write_tar
from tests.pictures import encoded, picture, write_files

PICTURES = {f"{number}.png": encoded(picture(number), "PNG") for number in range(4)}
VIEW = View(ImageProcessor(8), seed=0, epoch=0, augment=False, random_caption=False, all_captions=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Indexes of shards are kept here."""
    monkeypatch.setenv("SEED_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shards"


def content(spec: object, **options: object) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Captions of the usable samples by key, after a check of their pixels; errors of the others."""
    source = open_source(str(spec), **options)
    loaded = [load(source.sample(number, 0), VIEW) for number in range(len(source))]
    for each in loaded:
        if each.error is None:
            expected = ImageProcessor(8).resize_uint8(picture(int(Path(each.key).stem)))
            np.testing.assert_array_equal(each.pixels, expected)
    usable = {each.key: each.captions for each in loaded if each.error is None}
    return usable, [each.error for each in loaded if each.error is not None]


def write_list(folder: Path, name: str, content: object) -> Path:
    lines = "\n".join(json.dumps(each) for each in content) if name.endswith("l") else json.dumps(content)
    write_files(folder, PICTURES)
    (folder / name).write_text(content if isinstance(content, str) else lines)
    return folder / name


def cc3m(count: int) -> list[dict]:
    return [{"image": f"{number}.png", "caption": f"number {number}"} for number in range(count)]


KARPATHY = {
    "images": [
        {"filename": "0.png", "split": "train", "sentences": [{"raw": "a zero."}, {"raw": "nothing"}]},
        {"filename": "1.png", "split": "val", "sentences": [{"tokens": ["a", "one"]}]},
        {"filename": "2.png", "filepath": ".", "split": "test", "sentences": [{"raw": "two", "tokens": ["no"]}]},
        {"filename": "3.png", "split": "restval", "sentences": [{"raw": "three"}]},
    ],
    "dataset": "coco",
}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.jsonl", cc3m(3), {"0.png": ("number 0",), "1.png": ("number 1",), "2.png": ("number 2",)}),
        ("captions.jsonl", [{"file_name": "1.png", "text": " two \n words "}], {"1.png": ("two words",)}),
        (
            "a.json",
            [{"image": "1.png", "caption": ["x", "y"]}, *cc3m(1)],
            {"1.png": ("x", "y"), "0.png": ("number 0",)},
        ),
        (
            "a.jsonl",
            [*cc3m(2), {"image": "0.png", "caption": "z"}],
            {"0.png": ("number 0", "z"), "1.png": ("number 1",)},
        ),
        ("a.tsv", "0.png\ta b\n\n1.png\tc\textra\n", {"0.png": ("a b",), "1.png": ("c",)}),
        ("a.tsv", "caption\tid\timage\r\nwords\t7\t2.png\r\n", {"2.png": ("words",)}),
        ("a.tsv", "filepath\ttitle\n2.png\twords\n", {"2.png": ("words",)}),
        (
            "coco.json",
            {
                "images": [{"id": 5, "file_name": "0.png"}, {"id": 7, "file_name": "1.png"}],
                "annotations": [
                    {"image_id": number, "caption": caption} for number, caption in [(7, "b"), (5, "a"), (7, "c")]
                ],
            },
            {"0.png": ("a",), "1.png": ("b", "c")},
        ),
    ],
)
def test_lists_of_all_formats(tmp_path: Path, name: str, text: object, expected: dict) -> None:
    path = write_list(tmp_path, name, text)
    assert content(path) == ({str(tmp_path / image): captions for image, captions in expected.items()}, [])
    if name.startswith("captions."):
        assert content(tmp_path) == content(path), "a folder's captions file is found"


@pytest.mark.parametrize(
    ("split", "expected"),
    [("train", {"0": ("a zero.", "nothing"), "3": ("three",)}), ("val", {"1": ("a one",)}), ("test", {"2": ("two",)})],
)
def test_a_karpathy_file_gives_one_split(tmp_path: Path, split: str, expected: dict) -> None:
    usable, errors = content(write_list(tmp_path, "dataset_coco.json", KARPATHY), split=split)
    assert ({Path(key).stem: captions for key, captions in usable.items()}, errors) == (expected, [])


def test_images_of_a_list_may_lie_elsewhere(tmp_path: Path) -> None:
    path = write_list(tmp_path / "images", "a.json", cc3m(2)).rename(tmp_path / "a.json")
    assert len(content(path, image_root=tmp_path / "images")[0]) == 2
    assert content(path)[1] == [f"{tmp_path}/{number}.png: no such file" for number in range(2)]


def test_bad_entries_of_a_list_are_skipped_and_named(tmp_path: Path) -> None:
    bad = [{"image": "1.png"}, {"caption": "x"}, [], {"image": "2.png", "caption": " "}, {"image": 3, "caption": "x"}]
    path = write_list(tmp_path, "a.jsonl", [*bad, *cc3m(1), {"image": "gone.png", "caption": "x"}])
    path.write_text(path.read_text() + "\n{torn")
    usable, errors = content(path)
    assert list(usable) == [str(tmp_path / "0.png")]
    named = [
        "1.png: ",
        f"{path}:2: ",
        f"{path}:3: ",
        "2.png: the caption is empty",
        f"{path}:5: ",
        f"{path}:8: not valid",
    ]
    assert [error for error in errors if "gone.png: no such file" in error] == errors[:1]
    assert all(error.startswith(name) for error, name in zip(errors[1:], named, strict=True)), errors


def test_a_folder_with_texts_beside_the_images(tmp_path: Path) -> None:
    texts = {"0.txt": b"zero", "sub/1.txt": "größe\n".encode(), "3.txt": b"\xff\xfe\xff"}
    write_files(tmp_path, {"0.png": PICTURES["0.png"], "sub/1.png": PICTURES["1.png"], **texts})
    write_files(tmp_path, {"2.png": PICTURES["2.png"], "3.png": PICTURES["3.png"]})
    usable, errors = content(tmp_path)
    assert usable == {str(tmp_path / "0.png"): ("zero",), str(tmp_path / "sub/1.png"): ("größe",)}
    assert errors[0] == f"{tmp_path}/2.txt: no such file"
    assert errors[1].startswith(f"{tmp_path}/3.txt: expected text in UTF-16")


def shard_members(numbers: range) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for number in numbers:
        members[f"{number}.png"] = PICTURES[f"{number}.png"]
        if number % 2:
            members[f"{number}.json"] = json.dumps({"caption": f"number {number}", "key": number}).encode()
        else:
            members |= {f"{number}.json": b"{}", f"{number}.txt": f"number {number}".encode()}
    return members


@pytest.mark.parametrize("spec", ["{0..1}.tar", "[01].tar", "."])
def test_shards_are_read_by_sample(tmp_path: Path, spec: str, cache: Path) -> None:
    (tmp_path / "data").mkdir()
    for shard in range(2):
        write_tar(tmp_path / "data" / f"{shard}.tar", shard_members(range(2 * shard, 2 * shard + 2)))
    expected = {f"{tmp_path}/data/{number // 2}.tar/{number}": (f"number {number}",) for number in range(4)}
    for _ in range(2):  # the second time from the kept indexes
        usable, errors = content(f"{tmp_path}/data/{spec}" if spec != "." else tmp_path / "data")
        assert (usable, errors) == (expected, [])
        assert len(list(cache.iterdir())) == 2


def test_a_damaged_or_old_index_is_made_again(tmp_path: Path, cache: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", shard_members(range(2)))
    content(shard)
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:-5])
    assert len(content(shard)[0]) == 2
    write_tar(shard, shard_members(range(3)))
    assert len(content(shard)[0]) == 3


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEED_FAST_CACHE", str(tmp_path / "file"))
    assert len(content(write_tar(tmp_path / "a.tar", shard_members(range(2))))[0]) == 2


def test_incomplete_samples_of_a_shard_are_skipped_and_named(tmp_path: Path) -> None:
    members = shard_members(range(2)) | {"2.png": PICTURES["2.png"], "3.txt": b"alone", "4.png": b"torn", "4.txt": b"x"}
    members |= {"5.png": PICTURES["3.png"], "5.json": b"[1", "6.png": PICTURES["3.png"], "6.json": b'{"no": 1}'}
    shard = write_tar(tmp_path / "a.tar", members)
    usable, errors = content(shard)
    assert len(usable) == 2
    messages = [
        "2: no caption",
        "3: no image",
        "4.png: not an image",
        "5.json: ",
        "6.json: expected caption or captions",
    ]
    assert all(error.startswith(f"{shard}/{text}") for error, text in zip(errors, messages, strict=True)), errors


def test_shards_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", shard_members(range(2)))
    (tmp_path / "torn.tar").write_bytes(shard.read_bytes()[:5000])
    (tmp_path / "z.tar.gz").write_bytes(gzip.compress(shard.read_bytes()))
    write_tar(tmp_path / "empty.tar", {"readme.md": b"x"})
    for spec, message in {
        "{0..2}.tar": "1.tar: no such shard",
        "x*.tar": "x*.tar: no shard matches",
        "torn.tar": "torn.tar: the shard is ",
        "z.tar.gz": "z.tar.gz: a compressed shard",
        "empty.tar": "empty.tar: the shard holds no image",
    }.items():
        with pytest.raises(ShardError, match=f"^{re.escape(str(tmp_path / message))}"):
            open_source(str(tmp_path / spec))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing", "nothing: no such file or folder"),
        ("shapes", "shapes: expected shapes:COUNT"),
        ("shapes:0", "shapes:0: expected"),
        ("shapes:5,sed=3", "shapes:5,sed=3: expected"),
        ("folder", "folder: expected tar shards, or images with"),
        ("two", "two: expected one captions file, got captions.jsonl and captions.tsv"),
        ("a.json", "a.json: expected a list of"),
        ("b.json", "b.json: not valid JSON"),
        ("c.jsonl", "c.jsonl: no usable entry: c.jsonl:1: expected caption"),
        ("d.json", "d.json: no usable entry for the split 'train'"),
        ("e.csv", "e.csv: expected a folder, tar shards, a list"),
    ],
)
def test_what_is_no_data_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str) -> None:
    files = {"folder/1.png": b"", "two/captions.jsonl": b"", "two/captions.tsv": b"", "a.json": b'{"a": 1}'}
    files |= {
        "b.json": b"{",
        "c.jsonl": b'{"picture": 1}',
        "d.json": json.dumps({"images": KARPATHY["images"][1:2]}).encode(),
    }
    monkeypatch.chdir(write_files(tmp_path, files | {"e.csv": b""}))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        open_source(spec)


def test_crops_have_the_area_and_ratio_of_the_official_ones() -> None:
    draw = random.Random(0).random
    boxes = [augment._box(300, 200, draw) for _ in range(2000)]
    sizes = np.array([(right - left, bottom - top) for left, top, right, bottom in boxes], dtype=float)
    area, ratio = sizes.prod(1) / 60_000, sizes[:, 0] / sizes[:, 1]
    assert area.min() > 0.49
    assert area.max() <= 1
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    assert all(left >= 0 and top >= 0 and right <= 300 and bottom <= 200 for left, top, right, bottom in boxes)
    assert np.array(boxes)[:, 0].std() > 10, "crops move"


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (400, 20)])
def test_very_long_pictures_are_cropped_to_their_middle(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (1, 2, 3))
    cropped = augment.random_crop(image, 16, random.Random(0).random, flip=True)
    assert cropped.size == (16, 16)
    assert cropped.getpixel((0, 0)) == (1, 2, 3)


def test_pictures_are_mirrored_unless_the_caption_tells_left_from_right() -> None:
    half = Image.new("RGB", (60, 60))
    half.paste((255, 255, 255), (30, 0, 60, 60))

    def share_mirrored(caption: str) -> float:
        draw = random.Random(0).random
        flip = augment.may_flip(caption)
        crops = [np.asarray(augment.random_crop(half, 8, draw, flip=flip)) for _ in range(300)]
        return float(np.mean([crop[4, 0, 0] > crop[4, 7, 0] for crop in crops]))

    assert share_mirrored("a dog Left of a cat") == share_mirrored("on the right") == 0
    assert 0.4 < share_mirrored("a bright leftover") < 0.6
