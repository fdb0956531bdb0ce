"""Shards as other tools write them: joined, padded, sparse, packed, linked, with odd names."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from seed_fast import limits
from seed_fast.data.image_processor import ImageError
from seed_fast.data.shards import list_entries, read_entry
from seed_fast.data.sources import open_source
from tests.data.test_shards import listed, write_tar


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEED_FAST_CACHE", str(tmp_path / "cache"))


def contents(shard: Path) -> tuple[dict[str, bytes], list[str]]:
    """Name and bytes of each usable image; problems, those of single images first."""
    problems: list[str] = []
    found, bad = {}, []
    for entry in list_entries([str(shard)], problems.append):
        try:
            found[entry.path[len(str(shard)) + 1 :]] = read_entry(entry)
        except ImageError as error:
            bad.append(str(error))
    return found, bad + problems


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
    "tar.zst": lambda data: pytest.importorskip("zstandard").compress(data),
}
ONE, TWO = {"1.jpg": b"1" * 700}, {"2.jpg": b"2" * 5000, "3.jpg": b""}


def archive(path: Path, members: dict[str, bytes]) -> bytes:
    content = write_tar(path, members).read_bytes()
    path.unlink()
    return content


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("joined", ["archives", "files"])
def test_archives_one_after_the_other_are_all_read(suffix: str, joined: str, tmp_path: Path) -> None:
    first, second = archive(tmp_path / "1.tar", ONE), archive(tmp_path / "2.tar", TWO)
    pack = PACKERS[suffix]
    shard = tmp_path / f"joined.{suffix}"
    shard.write_bytes(pack(first + second) if joined == "archives" else pack(first) + pack(second))
    assert contents(shard) == (ONE | TWO, [])


@pytest.mark.parametrize("suffix", PACKERS)
def test_zeros_behind_the_end_marker_are_nothing_and_anything_else_is_named(suffix: str, tmp_path: Path) -> None:
    content = archive(tmp_path / "1.tar", ONE)
    shard = tmp_path / f"padded.{suffix}"
    shard.write_bytes(PACKERS[suffix](content + bytes(3_000_001)))
    assert contents(shard) == (ONE, [])
    shard.write_bytes(PACKERS[suffix](content + bytes(3_000_000) + b"anything" * 99))
    found, (problem,) = contents(shard)
    assert found == ONE
    assert problem.startswith(f"{shard}: data that is no tar follows the end marker, at byte ")


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_second_archive_that_is_torn_is_named(suffix: str, tmp_path: Path) -> None:
    content = archive(tmp_path / "1.tar", ONE) + archive(tmp_path / "2.tar", TWO)[:2000]
    shard = tmp_path / f"torn.{suffix}"
    shard.write_bytes(PACKERS[suffix](content))
    found, problems = contents(shard)
    assert found == ONE
    assert len(problems) == 1
    assert problems[0].startswith(f"{shard}: ") or problems[0].startswith(f"{shard}/2.jpg: ")


def test_packed_shards_are_seen_in_a_folder(tmp_path: Path) -> None:
    for number, (suffix, pack) in enumerate(PACKERS.items()):
        (tmp_path / f"{number}.{suffix}").write_bytes(pack(archive(tmp_path / "x.tar", {f"{number}.jpg": b"x"})))
    paths, problems = listed(tmp_path)
    assert [Path(path).name for path in paths] == [f"{number}.jpg" for number in range(len(PACKERS))]
    assert not problems


def test_a_zst_shard_without_the_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert "pip install 'seed_fast[zstd]'" in listed(tmp_path)[1][0]


@pytest.mark.skipif(shutil.which("tar") is None, reason="GNU tar makes the sparse archives")
@pytest.mark.parametrize("form", ["gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax"])
def test_sparse_members_have_their_expanded_content(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s").mkdir()
    for name, size in (("a.jpg", 0), ("b.npy", 3 << 20), ("c.jpg", 1 << 20), ("d.jpg", 1 << 22), ("e.jpg", 0)):
        (tmp_path / "s" / name).write_bytes(b"DATA")
        if size:
            os.truncate(tmp_path / "s" / name, size)
    command = ["tar", "--sort=name", "-S", *f"--format={form}".split(), "-cf", "s.tar", "-C", "s", "."]
    subprocess.run(command, cwd=tmp_path, check=True)
    monkeypatch.setattr(limits, "MAX_MEMBER_BYTES", 1 << 21)
    found, problems = contents(tmp_path / "s.tar")
    whole = b"DATA" + bytes((1 << 20) - 4)
    assert found == {"./a.jpg": b"DATA", "./c.jpg": whole, "./e.jpg": b"DATA"}
    assert problems == [f"{tmp_path}/s.tar/./d.jpg: expected at most {1 << 21} bytes when unpacked, got {1 << 22}"]
    shard = tmp_path / "s.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 3])
    assert len(contents(shard)[1]) >= 1


@pytest.mark.parametrize("suffix", [suffix for suffix in PACKERS if suffix != "tar"])
def test_a_packed_member_may_not_be_larger_than_the_limit(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_MEMBER_BYTES", 4000)
    shard = tmp_path / f"a.{suffix}"
    shard.write_bytes(PACKERS[suffix](archive(tmp_path / "a.tar", ONE | TWO)))
    found, problems = contents(shard)
    assert found == ONE
    assert problems == [f"{shard}/2.jpg: expected at most 4000 bytes when unpacked, got 5000"]


def test_links_and_devices_in_a_shard_are_named(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as tar:
        for name, kind in (("a.jpg", tarfile.LNKTYPE), ("b.jpg", tarfile.SYMTYPE), ("c.jpg", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "other.jpg"
            tar.addfile(member)
        tar.addfile(tarfile.TarInfo("d.jpg"))
    found, problems = contents(shard)
    assert found == {"d.jpg": b""}
    kinds = ("a link to other.jpg", "a link to other.jpg", "no file")
    for problem, name, kind in zip(problems, "abc", kinds, strict=True):
        assert problem == f"{shard}/{name}.jpg: expected a file in the shard, got {kind}"


def test_a_header_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
        header = tarfile.TarInfo("pax")
        header.type, header.size = tarfile.XHDTYPE, 1 << 32
        tar.fileobj.write(header.tobuf(tarfile.USTAR_FORMAT))
    found, (problem,) = contents(shard)
    assert found == {"a.jpg": b""}
    assert problem.endswith(f"a header of {1 << 32} bytes")


DOTS = {
    "two pairs": (["i_0.5.jpg", "i_0.5.txt", "i_0.7.jpg", "i_0.7.txt"], ["i_0.5", "i_0.7"]),
    "a pair beside others": (["i_0.5.jpg", "i_0.5.txt", "ok.jpg", "ok.txt"], ["i_0.5", "ok"]),
    "dots in folders": (["22.0/1.1.jpg", "22.0/1.1.txt"], ["22.0/1.1"]),
    "a field of webdataset": (["1.jpg", "1.mask.png", "1.txt", "1.more.txt"], ["1"]),
    "captions as json": (["v1.2.3.PNG", "v1.2.3.json"], ["v1.2.3"]),
    "a pair inside a sample": (["1.jpg", "1.txt", "1.b.jpg", "1.b.txt"], ["1", "1.b"]),
}


@pytest.mark.parametrize("case", DOTS)
def test_names_with_dots_are_samples_of_their_own(case: str, tmp_path: Path) -> None:
    names, expected = DOTS[case]
    shard = write_tar(tmp_path / "a.tar", dict.fromkeys(names, b'{"text": "x"}'))
    source = open_source(str(shard))
    samples = [source.sample(number, 0) for number in range(len(source))]
    assert [sample.key for sample in samples] == [f"{shard}/{name}" for name in expected]
    for sample in samples:
        assert sample.read_captions()
        assert sample.image.path[len(str(shard)) + 1 :] in names


def test_an_image_with_dots_and_without_a_caption_is_named(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", {"i_0.5.jpg": b"", "ok.jpg": b"", "ok.txt": b"x"})
    source = open_source(str(shard))
    assert [source.sample(number, 0).key for number in range(len(source))] == [f"{shard}/i_0.5", f"{shard}/ok"]


def test_names_that_are_no_utf8_make_samples_in_shards_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    for suffix in (b"jpg", b"txt"):
        Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9." + suffix)).write_bytes(b"a cat")
    shard = tmp_path / "sh\udcffard.tar"
    with tarfile.open(shard, "w", encoding="latin1", format=tarfile.GNU_FORMAT) as tar:
        for name in ("café.jpg", "café.txt"):
            member = tarfile.TarInfo(name)
            member.size = 5
            tar.addfile(member, io.BytesIO(b"a cat"))
    for spec, key in ((folder, f"{folder}/caf\udce9.jpg"), (shard, f"{shard}/caf\udce9")):
        for _ in range(2):  # the second time from the kept index
            (sample,) = (open_source(str(spec)).sample(number, 0) for number in range(1))
            assert (sample.key, sample.read_captions()) == (key, ("a cat",))


def test_a_link_to_itself_does_not_lose_its_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "sub/b.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "folder").symlink_to("folder")
    (tmp_path / "away").symlink_to("/no/such/folder")
    (tmp_path / "sub" / "back").symlink_to(tmp_path)
    paths, problems = listed(tmp_path)
    assert [Path(path).name for path in paths] == ["a.jpg", "gone.jpg", "loop.jpg", "b.jpg"]
    assert problems == [f"{tmp_path}/{name}: a link that leads nowhere" for name in ("away", "folder")]


def test_bad_links_do_not_lose_a_data_set(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "away").symlink_to("/no/such/folder")
    (tmp_path / "self").symlink_to(".")
    source = open_source(str(tmp_path))
    samples = [source.sample(number, 0) for number in range(len(source))]
    assert [sample.key for sample in samples] == [f"{tmp_path}/{name}" for name in ("a.jpg", "loop.jpg", "away")]
    assert samples[-1].problem == "a link that leads nowhere"
