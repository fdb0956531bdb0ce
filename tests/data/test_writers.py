"""Outputs: what is written, under which name, and what an interrupted writer leaves."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from seed_fast.data.journal import Journal, OutputError, read_journal
from seed_fast.data.shards import Split
from seed_fast.data.writers import JsonlWriter, NpzWriter

RUN = {"model": "a", "shard": "0/1"}
PATHS = ["a.jpg", 'b "quoted".jpg', "new\nline.jpg", "undecodable\udcff.jpg", "ü/日本.jpg"]
CODES = np.arange(5 * 32).reshape(5, 32) * 51


def parts(folder: Path, name: str = "codes") -> tuple[list[str], np.ndarray]:
    """Paths and codes of all parts."""
    loaded = [np.load(path, allow_pickle=False) for path in sorted(folder.glob(f"{name}.?????.npz"))]
    return [path for part in loaded for path in part["paths"].tolist()], np.concatenate([p["codes"] for p in loaded])


def test_a_line_is_a_path_and_its_codes(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "new" / "codes.jsonl")
    writer.open(RUN, resume=False)
    writer.append(PATHS[:2], CODES[:2])
    writer.append(PATHS[2:], CODES[2:])
    assert [path.name for path in writer.leftovers()] == ["codes.jsonl.partial"], "no output before it is whole"
    writer.finish()
    lines = (tmp_path / "new" / "codes.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"path": path, "codes": codes} for path, codes in zip(PATHS, CODES.tolist(), strict=True)
    ]
    assert os.listdir(tmp_path / "new") == ["codes.jsonl"], "nothing else is left behind"


def test_a_tail_torn_at_any_byte_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "codes.partial"
    journal = Journal(path)
    journal.append(PATHS, CODES)
    journal.close()
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        Journal(path).close()
        kept = whole[: whole.rfind(b"\n", 0, length) + 1]
        assert path.read_bytes() == kept, length
        assert [name for name, _ in read_journal(path)] == PATHS[: kept.count(b"\n")]


def test_a_torn_tail_longer_than_a_block_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "codes.partial"
    path.write_bytes(b"whole\n" + b"\0" * 200_000)
    Journal(path).close()
    assert path.read_bytes() == b"whole\n"


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.partial").write_text('{"path": "a", "codes": []}\nnonsense\n')
    with pytest.raises(OutputError, match=r"x\.partial: line 2 must be"):
        list(read_journal(tmp_path / "x.partial"))


def test_two_processes_cannot_write_one_output(tmp_path: Path) -> None:
    first, second = JsonlWriter(tmp_path / "codes.jsonl"), JsonlWriter(tmp_path / "codes.jsonl")
    first.open(RUN, resume=True)
    with pytest.raises(OutputError, match=r"codes\.jsonl\.partial: another process is writing it"):
        second.open(RUN, resume=True)
    first.close()


@pytest.mark.parametrize("how", [{"resume": True}, {"resume": False}, {"resume": False, "overwrite": False}], ids=str)
@pytest.mark.parametrize("kind", [JsonlWriter, NpzWriter])
def test_an_output_that_is_being_written_is_refused_and_untouched(tmp_path: Path, kind: type, how: dict) -> None:
    output = tmp_path / "codes"
    first = kind(output)
    first.open(RUN, resume=False)
    first.append(PATHS[:3], CODES[:3])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match=r"codes(\.partial)?: another process is writing it"):
        kind(output).open(RUN, **how)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    first.append(PATHS[3:], CODES[3:])
    first.finish()
    found = parts(output)[0] if kind is NpzWriter else [path for path, _ in read_journal(output)]
    assert found == PATHS


@pytest.mark.parametrize("kind", [JsonlWriter, NpzWriter])
@pytest.mark.parametrize("finished", [True, False])
def test_what_came_since_the_command_began_is_not_dropped_unasked(tmp_path: Path, kind: type, finished: bool) -> None:
    first = kind(tmp_path / "codes")
    first.open(RUN, resume=False)
    first.append(PATHS, CODES)
    if finished:
        first.finish()
    first.close()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match="codes: another run has begun or finished it meanwhile"):
        kind(tmp_path / "codes").open(RUN, resume=False, overwrite=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_lock_of_a_killed_process_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".codes.lock").touch()
    writer = NpzWriter(tmp_path / "out")
    writer.open(RUN, resume=True)
    list(writer.recorded())
    writer.append(PATHS, CODES)
    writer.finish()
    assert sorted(os.listdir(tmp_path / "out")) == ["codes.00000.npz", "codes.run.json"]


@pytest.mark.parametrize("kind", [JsonlWriter, NpzWriter])
def test_a_run_with_another_model_cannot_go_on(tmp_path: Path, kind: type) -> None:
    writer = kind(tmp_path / "codes")
    writer.open(RUN, resume=False)
    writer.append(PATHS, CODES)
    writer.close()
    with pytest.raises(OutputError, match=r"begun by another run: model was a, is b$"):
        kind(tmp_path / "codes").open(RUN | {"model": "b"}, resume=True)
    again = kind(tmp_path / "codes")
    again.open(RUN, resume=True)
    assert list(again.recorded()) == PATHS
    again.close()


def test_parts_are_numbered_and_hold_paths_and_codes(tmp_path: Path) -> None:
    writer = NpzWriter(tmp_path / "out", part_images=2)
    writer.open(RUN, resume=False)
    writer.append(PATHS, CODES)
    writer.finish()
    assert sorted(os.listdir(tmp_path / "out")) == [f"codes.0000{n}.npz" for n in range(3)] + ["codes.run.json"]
    paths, codes = parts(tmp_path / "out")
    assert paths == PATHS
    np.testing.assert_array_equal(codes, CODES)
    assert codes.dtype == np.uint16
    assert json.loads((tmp_path / "out" / "codes.run.json").read_text()) == RUN


def test_codes_of_a_large_codebook_are_int32(tmp_path: Path) -> None:
    writer = NpzWriter(tmp_path / "out", codebook_size=100_000)
    writer.open(RUN, resume=False)
    writer.append(["a"], np.array([[99_999]]))
    writer.finish()
    paths, codes = parts(tmp_path / "out")
    assert (paths, codes.tolist(), codes.dtype) == (["a"], [[99_999]], np.int32)


@pytest.mark.parametrize("crash", ["before the part", "before the journal's end"])
def test_a_kill_while_a_part_is_packed_loses_and_doubles_nothing(
    tmp_path: Path, crash: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = NpzWriter(tmp_path, part_images=3)
    writer.open(RUN, resume=False)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if crash == "before the part":
            patch.setattr("seed_fast.data.writers.write_beside", killed)
        else:
            patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.append(PATHS[:3], CODES[:3])
    writer.close()
    again = NpzWriter(tmp_path, part_images=3)
    again.open(RUN, resume=True)
    assert list(again.recorded()) == PATHS[:3]
    again.append(PATHS[3:], CODES[3:])
    again.finish()
    paths, codes = parts(tmp_path)
    assert paths == PATHS
    np.testing.assert_array_equal(codes, CODES)


@pytest.mark.parametrize("kind", [JsonlWriter, NpzWriter])
def test_each_part_of_split_work_has_files_of_its_own(tmp_path: Path, kind: type) -> None:
    for index in range(2):
        writer = kind(tmp_path / "codes.jsonl", Split(index, 2))
        writer.open(RUN, resume=False)
        writer.append(PATHS[index::2], CODES[index::2])
        writer.finish()
    if kind is JsonlWriter:
        assert sorted(os.listdir(tmp_path)) == ["codes.00000-of-00002.jsonl", "codes.00001-of-00002.jsonl"]
    else:
        assert parts(tmp_path / "codes.jsonl", "codes.00001-of-00002")[0] == PATHS[1::2]


CHILD = """
import sys
from pathlib import Path
import numpy as np
from seed_fast.data import writers

kind, output, total = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
writer = writers.JsonlWriter(output) if kind == "jsonl" else writers.NpzWriter(output, part_images=700)
writer.open({}, resume=True)
done = 0 if writer.complete else sum(1 for _ in writer.recorded())
print("ready", flush=True)
while not writer.complete and done < total:
    batch = range(done, min(done + 7, total))
    writer.append([f"{n}.jpg" for n in batch], np.array([[n % 512, n % 7] for n in batch]))
    done = batch.stop
writer.finish()
"""


@pytest.mark.parametrize("kind", ["jsonl", "npz"])
def test_random_kills_lose_and_double_nothing(tmp_path: Path, kind: str) -> None:
    total, output = 60_000, tmp_path / "codes"
    luck, kills = random.Random(0), 0
    command = [sys.executable, "-c", CHILD, kind, str(output), str(total)]
    for _ in range(100):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            if kills < 15:
                time.sleep(luck.uniform(0, 0.04))
                child.send_signal(signal.SIGKILL)
        kills += child.returncode == -signal.SIGKILL
        if child.returncode == 0:
            break
    assert kills >= 5, "the test must interrupt the writer to mean anything"
    if kind == "jsonl":
        records = list(read_journal(output))
        paths, codes = [path for path, _ in records], np.array([codes for _, codes in records])
        assert os.listdir(tmp_path) == ["codes"]
    else:
        paths, codes = parts(output)
        assert not list(output.glob("*.partial"))
    assert paths == [f"{number}.jpg" for number in range(total)]
    np.testing.assert_array_equal(codes[:, 0], np.arange(total) % 512)
