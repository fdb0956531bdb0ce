"""How many images inputs hold, without opening one."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from seed_fast import _terminal
from seed_fast.data.counting import Counting, count_images
from seed_fast.data.shards import Split, list_entries
from tests.pictures import encoded, picture, write_files


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    names = ["a/1.png", "a/b/2.PNG", "a/notes.txt", "c/3.jpg", "c/4.jpg"]
    write_files(tmp_path, {name: encoded(picture(0), "PNG") for name in names})
    return tmp_path


def shard(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    return path


def test_files_folders_globs_and_lists_are_counted_as_they_are_listed(inputs: Path) -> None:
    sources = [str(inputs / "a"), str(inputs / "c" / "3.jpg"), f"{inputs}/c/*.jpg", f"{inputs}/c/{{3,4,5}}.jpg"]
    listed = list(list_entries(sources, lambda line: None))
    assert count_images(sources) == len(listed) == 8
    for index in range(3):
        counting = Counting(sources, Split(index, 3))
        counting._thread.join()
        assert counting.total == len(list(Split(index, 3).take(listed)))
        counting.close()


def test_a_shard_is_counted_by_its_index_alone(inputs: Path) -> None:
    path = shard(inputs / "c" / "s.tar", "1.jpg", "1.txt", "2.png", "2.txt")
    sources = [str(inputs / "c")]
    assert count_images(sources) is None
    lines = ["v1.2 2", "jpg 512 3 1.jpg txt 1536 3 1.txt", "png 2560 3 2.png txt 3584 3 2.txt"]
    (inputs / "c" / "s.idx").write_text("\n".join(lines) + "\n")
    assert count_images(sources) == 4
    assert len(list(list_entries(sources, lambda line: None))) == 4
    os.utime(inputs / "c" / "s.idx", (0, 0))
    assert count_images(sources) is None, "an index that is older than its shard says nothing"
    os.utime(inputs / "c" / "s.idx")
    (inputs / "c" / "s.idx").write_text("v9 2\nx\n")
    assert count_images([str(path)]) is None


def test_counting_stops_when_it_is_told_to(inputs: Path) -> None:
    assert count_images([str(inputs / "a")], stopped=lambda: True) is None


def test_a_known_total_gives_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = io.StringIO(), SimpleNamespace(now=100.0)
    monkeypatch.setattr(_terminal.time, "monotonic", lambda: clock.now)
    progress = _terminal.ProgressBar(stream)
    for total in (100, 60):
        clock.now += 10
        progress.expect(total)
        progress.advance(20)
    assert (
        stream.getvalue()
        == "20 of 100 images, 2.0 images/s, 0:00:40 left\n40 of 60 images, 2.0 images/s, 0:00:10 left\n"
    )
