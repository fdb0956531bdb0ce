"""Worker processes: order, bounded work ahead, and an end in every case."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from seed_fast._remarks import named_remarks
from seed_fast._terminal import tell
from seed_fast.data.decode import CHUNK, ImageDecoder, WorkerDied, decode_entry
from seed_fast.data.image_processor import ImageProcessor
from seed_fast.data.shards import Entry, list_entries
from tests.pictures import broken_files, encoded, good_files, picture, write_files


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    files = good_files() | broken_files()
    write_files(tmp_path, files)
    return [Entry(str(tmp_path / name), str(tmp_path / name)) for name in sorted(files)]


def test_workers_give_what_the_main_process_gives_in_the_same_order(entries: list[Entry]) -> None:
    processor = ImageProcessor(16)
    results = []
    for workers in (0, 2):
        with ImageDecoder(processor, workers, ahead=4) as decoder:
            results.append(list(decoder.map(entries)))
    assert [image.path for image in results[0]] == [entry.path for entry in entries]
    assert sum(image.error is not None for image in results[0]) == len(broken_files())
    for here, there in zip(*results, strict=True):
        assert (here.path, here.error) == (there.path, there.error)
        assert (here.pixels is None) == (here.error is not None)
        if here.pixels is not None:
            np.testing.assert_array_equal(here.pixels, there.pixels)


@pytest.mark.parametrize(("workers", "ahead"), [(0, 8), (1, 64)])
def test_no_more_is_read_ahead_than_was_allowed(workers: int, ahead: int, entries: list[Entry]) -> None:
    drawn = 0

    def endless() -> Iterator[Entry]:
        nonlocal drawn
        while True:
            drawn += 1
            yield entries[0]

    with ImageDecoder(ImageProcessor(16), workers, ahead) as decoder:
        for taken, _ in enumerate(decoder.map(endless()), 1):
            assert drawn <= taken + ahead + CHUNK
            if taken == 200:
                break


def test_a_killed_worker_is_an_error_and_no_hang(entries: list[Entry]) -> None:
    with ImageDecoder(ImageProcessor(16), 1, ahead=4) as decoder:
        images = decoder.map(entries * 100)
        next(images)
        for pid in decoder._pool.pids:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDied, match=r"a decoding worker died at .* or soon after: killed \(out of memory\?\)"):
            list(images)


PARENT = """
import time
from seed_fast.data.decode import ImageDecoder
from seed_fast.data.image_processor import ImageProcessor
from seed_fast.data.shards import Entry

if __name__ == "__main__":
    with ImageDecoder(ImageProcessor(16), 2, 64) as decoder:
        for _ in decoder.map(Entry("missing", "missing") for _ in range(10**9)):
            if len(decoder._pool.pids) == 2:
                print(*decoder._pool.pids, flush=True)
                time.sleep(60)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(_runs(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def damaged_tiff() -> bytes:
    """One of which libtiff prints what is wrong, under a made-up name, and Pillow says -2."""
    tiff = bytearray(encoded(picture(1).resize((99, 99)), "TIFF", compression="tiff_adobe_deflate"))
    tiff[60:160] = bytes(range(100))
    return bytes(tiff)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_decoder_prints_is_told_with_the_name_of_the_image(
    workers: int, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    write_files(tmp_path, {"a.png": encoded(picture(1), "PNG"), "b.tif": damaged_tiff(), "c.tif": damaged_tiff()})
    entries = list(list_entries([str(tmp_path)], pytest.fail))
    with ImageDecoder(ImageProcessor(8), workers, ahead=4) as decoder:
        found = [image.error is None for image in decoder.map(entries)]
    assert found == [True, False, False]
    printed = capfd.readouterr().err.splitlines()
    assert len(printed) == 2
    for line, name in zip(printed, ("b.tif", "c.tif"), strict=True):
        assert line.startswith(f"warning: {tmp_path}/{name}: ")


def test_many_remarks_are_cut_and_messages_are_read_though_a_decoder_hangs(capfd: pytest.CaptureFixture) -> None:
    with named_remarks("a"):
        os.write(2, b"x\n" * 5000)
    assert capfd.readouterr().err == "warning: a: x\n" * 3 + "warning: a: (and more)\n"
    with named_remarks("b"):
        os.write(2, b"late\n")
        tell("a message", sys.stderr)
        os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "a message\nafterwards\n"
    with named_remarks("c"), named_remarks("d"):  # as by two threads
        os.write(2, b"both\n")
    assert capfd.readouterr().err == "warning: c: both\n"


def test_an_image_for_which_there_is_no_memory_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(entry: Entry) -> bytes:
        raise MemoryError

    monkeypatch.setattr("seed_fast.data.decode.read_entry", no_memory)
    assert decode_entry(Entry("a", "a"), ImageProcessor(8)).error == "a: there is no memory to read or decode it"
