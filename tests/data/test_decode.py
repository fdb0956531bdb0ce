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

from seed_fast.data.decode import CHUNK, Decoder, WorkerDied
from seed_fast.data.image_processor import ImageProcessor
from seed_fast.data.shards import Entry
from tests.pictures import broken_files, good_files, write_files


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    files = good_files() | broken_files()
    write_files(tmp_path, files)
    return [Entry(str(tmp_path / name), str(tmp_path / name)) for name in sorted(files)]


def test_workers_give_what_the_main_process_gives_in_the_same_order(entries: list[Entry]) -> None:
    processor = ImageProcessor(16)
    results = []
    for workers in (0, 2):
        with Decoder(processor, workers, ahead=4) as decoder:
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

    with Decoder(ImageProcessor(16), workers, ahead) as decoder:
        for taken, _ in enumerate(decoder.map(endless()), 1):
            assert drawn <= taken + ahead + CHUNK
            if taken == 200:
                break


def test_a_killed_worker_is_an_error_and_no_hang(entries: list[Entry]) -> None:
    with Decoder(ImageProcessor(16), 1, ahead=4) as decoder:
        images = decoder.map(entries * 100)
        next(images)
        for pid in decoder._pool.pids:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDied, match=r"a decoding worker died at .* or soon after: killed \(out of memory\?\)"):
            list(images)


PARENT = """
import time
from seed_fast.data.decode import Decoder
from seed_fast.data.image_processor import ImageProcessor
from seed_fast.data.shards import Entry

if __name__ == "__main__":
    with Decoder(ImageProcessor(16), 2, 64) as decoder:
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
