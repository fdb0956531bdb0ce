"""The listing of inputs: names, order, splits, and shards that are torn."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seed_fast.data.image_processor import ImageError
from seed_fast.data.shards import Entry, Split, list_entries, read_entry
from tests.pictures import write_files

MEMBERS = {f"{number:03d}.{kind}": bytes([number]) * (700 + number) for number in range(6) for kind in ("jpg", "txt")}


def listed(*inputs: object) -> tuple[list[str], list[str]]:
    """Paths and problems."""
    problems: list[str] = []
    return [entry.path for entry in list_entries(map(str, inputs), problems.append)], problems


def write_tar(path: Path, members: dict[str, bytes] = MEMBERS, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_a_folder_is_walked_in_the_order_of_full_paths(tmp_path: Path) -> None:
    names = ["b.jpg", "a/z.PNG", "a-b.jpg", "a/b/c.webp", "notes.txt", "a.jpeg", "c/d/e/f.tiff"]
    write_files(tmp_path, dict.fromkeys(names, b""))
    paths, problems = listed(tmp_path)
    assert paths == sorted(str(tmp_path / name) for name in names if name != "notes.txt")
    assert not problems


def test_names_are_as_reached_from_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"photos/a.jpg": b"", "photos/b/c.jpg": b""})
    monkeypatch.chdir(tmp_path)
    assert listed("photos") == (["photos/a.jpg", "photos/b/c.jpg"], [])
    assert listed("./photos/") == (["./photos/a.jpg", "./photos/b/c.jpg"], [])
    assert listed("photos/b/c.jpg", "photos/a.jpg") == (["photos/b/c.jpg", "photos/a.jpg"], []), (
        "inputs keep their order"
    )


def test_links_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    write_files(tmp_path, {"data/a.jpg": b"", "elsewhere/b.jpg": b""})
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "circle").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    paths, _ = listed(tmp_path / "data")
    assert [Path(path).name for path in paths] == ["a.jpg", "gone.jpg", "b.jpg"], (
        "a dangling link is told when it is read"
    )


def test_globs_and_braces(tmp_path: Path) -> None:
    write_files(
        tmp_path, dict.fromkeys(["1.jpg", "2.jpg", "10.jpg", "x.txt", "sub/3.jpg", "odd[1].jpg", "{a}.jpg"], b"")
    )
    assert [Path(path).name for path in listed(tmp_path / "[0-9]*.jpg")[0]] == ["1.jpg", "10.jpg", "2.jpg"]
    assert [Path(path).name for path in listed(tmp_path / "**/*.jpg")[0]].count("3.jpg") == 1
    assert [Path(path).name for path in listed(tmp_path / "**")[0]].count("3.jpg") == 1
    assert [Path(path).name for path in listed(tmp_path / "s*")[0]] == ["3.jpg"], (
        "a folder that a glob matches is walked"
    )
    assert [Path(path).name for path in listed(tmp_path / "{1,10}.jpg")[0]] == ["1.jpg", "10.jpg"]
    assert [Path(path).name for path in listed(tmp_path / "{2..1}.jpg")[0]] == ["2.jpg", "1.jpg"]
    for literal in ("odd[1].jpg", "{a}.jpg"):
        assert listed(tmp_path / literal)[0] == [str(tmp_path / literal)], "a file that exists is no pattern"


def test_a_pattern_without_a_match_is_a_problem_and_a_missing_file_an_entry(tmp_path: Path) -> None:
    assert listed(tmp_path / "*.jpg") == ([], [f"{tmp_path}/*.jpg: no file matches"])
    assert listed(tmp_path / "a.jpg") == ([str(tmp_path / "a.jpg")], [])
    assert listed(tmp_path / "a}{.jpg") == ([str(tmp_path / "a}{.jpg")], [])


@pytest.mark.parametrize(
    ("suffix", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar.xz", "w:xz"), ("tar", "w:gz")]
)
def test_images_of_a_shard_in_archive_order(tmp_path: Path, suffix: str, mode: str) -> None:
    names = {
        "b.jpg": b"2",
        "a.jpg": b"1" * 9999,
        "a.json": b"{}",
        "./c.png": b"",
        "deep/" * 40 + "d.jpg": b"4",
        "ü.jpg": b"5",
    }
    shard = write_tar(tmp_path / f"0.{suffix}", names, mode)
    problems: list[str] = []
    entries = list(list_entries([str(tmp_path)], problems.append))
    images = {name: content for name, content in names.items() if name != "a.json"}
    assert [entry.path for entry in entries] == [f"{shard}/{name}" for name in images]
    assert [read_entry(entry) for entry in entries] == list(images.values())
    assert not problems


def test_a_shard_cut_anywhere_gives_its_whole_members_and_one_problem(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar").read_bytes()
    end_of_members = 512 * sum(1 + -(-len(content) // 512) for content in MEMBERS.values())
    shard = tmp_path / "torn.tar"
    for length in {*range(0, end_of_members, 256), *range(1, end_of_members, 1111), end_of_members}:
        shard.write_bytes(whole[:length])
        problems: list[str] = []
        entries = list(list_entries([str(shard)], problems.append))
        position, readable = 0, []
        for name, content in MEMBERS.items():
            position += 512 + len(content)
            if position <= length and name.endswith("jpg"):
                readable.append((f"{shard}/{name}", content))
            position += -len(content) % 512
        assert [(entry.path, read_entry(entry)) for entry in entries] == readable, length
        assert len(problems) == 1, length
        assert problems[0].startswith(f"{shard}: "), length


@pytest.mark.parametrize("damage", ["header", "gzip", "no_tar", "missing", "folder"])
def test_a_damaged_shard_is_one_line_that_names_it(tmp_path: Path, damage: str) -> None:
    shard = tmp_path / "0.tar"
    if damage == "header":
        content = bytearray(write_tar(shard).read_bytes())
        content[2 * (512 + 1024) + 148 : 2 * (512 + 1024) + 156] = b"xxxxxxxx"  # checksum of the third member
        shard.write_bytes(content)
    elif damage == "gzip":
        shard = write_tar(tmp_path / "0.tar.gz", mode="w:gz")
        shard.write_bytes(shard.read_bytes()[:-20])
    elif damage == "no_tar":
        shard.write_bytes(b"not a tar file" * 100)
    elif damage == "folder":
        (tmp_path / "0.tar").mkdir()
    paths, problems = listed(shard)
    if damage == "folder":
        assert (paths, problems) == ([], []), "a folder is walked whatever its name"
    else:
        assert len(problems) == 1
        assert problems[0].startswith(f"{shard}: ")
    assert len(paths) == (1 if damage == "header" else len(paths))


def test_a_listing_goes_on_after_a_bad_input(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": b"", "b.tar": b"torn", "c.jpg": b""})
    paths, problems = listed(tmp_path)
    assert [Path(path).name for path in paths] == ["a.jpg", "c.jpg"]
    assert len(problems) == 1


def test_a_shard_that_shrinks_while_it_is_read_is_told(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar")
    entries = list(list_entries([str(shard)], pytest.fail))
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(ImageError, match=r"0\.tar/000\.jpg: expected 700 bytes in the shard, got 488"):
        read_entry(entries[0])


@given(total=st.integers(0, 60), count=st.integers(1, 9))
def test_splits_neither_lose_nor_repeat(total: int, count: int) -> None:
    entries = [Entry(str(number), str(number)) for number in range(total)]
    parts = [list(Split(index, count).take(entries)) for index in range(count)]
    assert sorted((entry for part in parts for entry in part), key=lambda entry: int(entry.path)) == entries
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "0/0", "a/b", "1/2/3", "0.5/2", " 0/2"])
def test_a_wrong_split_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="shard must be i/n with 0 <= i < n"):
        Split.parse(text)


def test_torchrun_decides_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Split.of_environment() is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert Split.of_environment() == Split.parse("3/4")
    monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match="shard must be"):
        Split.of_environment()
