"""The run as a whole, with a tokenizer that takes no time: order, resuming from any byte, counts, memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seed_fast.data import pipeline
from seed_fast.data.image_processor import ImageProcessor
from seed_fast.data.journal import OutputError
from seed_fast.data.pipeline import Job, NoImages, TokenizeSummary
from seed_fast.data.shards import Split
from seed_fast.data.staging import HostLink
from seed_fast.data.writers import JsonlWriter, NpzWriter, Writer
from seed_fast.model.weight_hashes import fingerprint
from tests.fake_tokenizer import FakeTokenizer
from tests.pictures import encoded, picture, write_files


class Lines(list):
    """A report that keeps its lines."""

    line = list.append

    def advance(self, images: int) -> None: ...

    def expect(self, images: int) -> None: ...


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images and two files that are none, at the second and the last but one place."""
    files = {f"{number:02d}.png": encoded(picture(number), "PNG") for number in range(12)}
    return write_files(tmp_path / "photos", files | {"01.png": b"text", "10.png": b""})


def run(folder: Path, output: Path | Writer, **options: object) -> tuple[TokenizeSummary, list[str]]:
    lines = Lines()
    tok = FakeTokenizer()
    writer = JsonlWriter(output, options.get("split", Split(0, 1))) if isinstance(output, Path) else output
    job = Job((str(folder),), **{"batch_size": 3} | options)
    processor = ImageProcessor(tok.config.image_size, tok.config.resize)
    return pipeline.tokenize(tok, job, processor, writer, "fake", lines, fingerprint(tok)), lines


def records(output: Path) -> dict[str, list[int]]:
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    found = {Path(line["path"]).name: line["codes"] for line in lines}
    assert len(found) == len(lines), "a line is doubled"
    return found


def test_lines_have_the_order_of_the_inputs_and_the_codes_of_their_image(folder: Path, tmp_path: Path) -> None:
    summary, lines = run(folder, tmp_path / "codes.jsonl")
    found = records(tmp_path / "codes.jsonl")
    assert list(found) == [f"{number:02d}.png" for number in range(12) if number not in (1, 10)]
    tok, processor = FakeTokenizer(), ImageProcessor(8)
    for name, codes in found.items():
        assert tok.lookup(tok.query_embeddings(tok.image_features(processor(folder / name)))).tolist() == [codes]
    assert (summary.written, summary.skipped, summary.left_out) == (10, 2, 2)
    assert len(lines) == 2
    assert lines[0].startswith(f"skipped: {folder}/01.png: ")
    assert lines[1].startswith(f"skipped: {folder}/10.png: ")


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 100}, {"workers": 1}])
def test_batches_and_workers_do_not_change_the_output(folder: Path, tmp_path: Path, options: dict) -> None:
    run(folder, tmp_path / "a.jsonl")
    run(folder, tmp_path / "b.jsonl", **options)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_codes_that_are_read_one_batch_late_are_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (9, 9), "white").save(folder / "05.png")
    before, lines = run(folder, tmp_path / "a.jsonl")
    monkeypatch.setattr(HostLink, "ahead", 1)  # as on a GPU
    after, late_lines = run(folder, tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert (after.written, after.skipped, sorted(late_lines)) == (before.written, before.skipped, sorted(lines))


def test_a_run_torn_at_any_byte_resumes_to_the_same_file(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    output, partial = tmp_path / "codes.jsonl", tmp_path / "codes.jsonl.partial"
    for length in range(0, len(whole) + 1, 3):
        output.unlink(missing_ok=True)
        partial.write_bytes(whole[:length])
        summary, lines = run(folder, output, resume=True)
        assert output.read_bytes() == whole, length
        assert summary.resumed == whole.count(b"\n", 0, length)
        assert summary.resumed + summary.written == 10
        assert (summary.skipped, summary.left_out) == (2, 2)
        assert sum(line.startswith("skipped: ") for line in lines) == 2, "bad images are told again"
        told = f"{output}: begun by an earlier run, whose model and options are not recorded any more" in lines
        assert told == (length > 0)


def test_an_image_repaired_before_resuming_is_encoded_once(folder: Path, tmp_path: Path) -> None:
    output, partial = tmp_path / "codes.jsonl", tmp_path / "codes.jsonl.partial"
    run(folder, output)
    lines = output.read_bytes().splitlines(keepends=True)
    output.unlink()
    partial.write_bytes(b"".join(lines[:4]))
    (folder / "01.png").write_bytes((folder / "02.png").read_bytes())
    run(folder, output, resume=True)
    found = records(output)
    assert len(found) == 11
    assert found["01.png"] == found["02.png"]
    lines = output.read_bytes().splitlines(keepends=True)
    output.unlink()
    partial.write_bytes(b"".join(lines[:7]))  # the repaired one, out of its place, is among them
    summary, _ = run(folder, output, resume=True)
    assert (summary.resumed, summary.written, summary.skipped) == (7, 4, 1)
    assert records(output) == found


def test_resuming_a_finished_run_writes_nothing_and_tells_the_same(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "codes.jsonl"
    run(folder, output)
    before = output.read_bytes()
    summary, lines = run(folder, output, resume=True)
    assert (summary.resumed, summary.written, summary.skipped, summary.left_out) == (10, 0, 2, 2)
    assert lines[0] == f"{output}: finished by an earlier run, whose model and options are not recorded"
    assert [Path(line.split(":")[1].strip()).name for line in lines[1:]] == ["01.png", "10.png"]
    assert output.read_bytes() == before


def test_an_output_of_other_inputs_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "codes.jsonl.partial").write_text('{"path":"other.png","codes":[1]}\n')
    with pytest.raises(OutputError, match=r"other\.png was recorded by an earlier run, but is not among the inputs"):
        run(folder, tmp_path / "codes.jsonl", resume=True)


@pytest.mark.parametrize("stop_after", [0, 1, 4, 9])
def test_an_interrupted_run_of_parts_resumes(folder: Path, tmp_path: Path, stop_after: int) -> None:
    class Interrupted(BaseException):
        pass

    class Stopping(NpzWriter):
        left = stop_after

        def append(self, paths: list[str], codes: np.ndarray) -> None:
            if len(paths) > self.left:
                raise Interrupted
            self.left -= len(paths)
            super().append(paths, codes)

    with pytest.raises(Interrupted):
        run(folder, Stopping(tmp_path / "out", part_images=2), batch_size=1)
    summary, _ = run(folder, NpzWriter(tmp_path / "out", part_images=2), resume=True)
    assert (summary.resumed, summary.written, summary.skipped) == (stop_after, 10 - stop_after, 2)
    run(folder, tmp_path / "codes.jsonl")
    loaded = [np.load(path) for path in sorted((tmp_path / "out").glob("*.npz"))]
    found = {
        Path(path).name: codes
        for part in loaded
        for path, codes in zip(part["paths"], part["codes"].tolist(), strict=True)
    }
    assert found == records(tmp_path / "codes.jsonl")


@pytest.mark.parametrize("count", [2, 3, 13])
def test_the_parts_of_split_work_are_the_whole(folder: Path, tmp_path: Path, count: int) -> None:
    run(folder, tmp_path / "all.jsonl")
    found: dict[str, list[int]] = {}
    skipped = 0
    for index in range(count):
        summary, _ = run(folder, tmp_path / "part.jsonl", split=Split(index, count))
        part = records(tmp_path / f"part.{index:05d}-of-{count:05d}.jsonl")
        assert not part.keys() & found.keys()
        found |= part
        skipped += summary.skipped
    assert found == records(tmp_path / "all.jsonl")
    assert skipped == 2


def test_an_image_without_finite_embeddings_is_skipped_never_written(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "white").save(folder / "05.png")
    summary, lines = run(folder, tmp_path / "codes.jsonl")
    assert "05.png" not in records(tmp_path / "codes.jsonl")
    assert f"skipped: {folder}/05.png: its embedding in torch.float32 is not finite, so it has no codes" in lines
    assert (summary.written, summary.skipped) == (9, 3)


def test_no_image_at_all_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoImages, match=r"no image found in .*empty"):
        run(tmp_path / "empty", tmp_path / "codes.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_the_stages_are_those_of_the_work_and_add_up(folder: Path, tmp_path: Path) -> None:
    summary, _ = run(folder, tmp_path / "codes.jsonl")
    names = [stage.name for stage in summary.stages]
    assert names == ["list", "read", "decode+resize", "normalise", "ViT", "Q-Former", "nearest code", "write"]
    assert sum(stage.share for stage in summary.stages) == pytest.approx(1)
    assert 0 < sum(stage.seconds for stage in summary.stages) <= summary.seconds


def test_a_fingerprint_tells_weights_apart() -> None:
    tok = FakeTokenizer()
    before = fingerprint(tok)
    assert fingerprint(FakeTokenizer()) == before
    tok.weights[0] += 1
    assert fingerprint(tok) != before


def test_entries_are_drawn_as_they_are_needed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays constant: the listing is never ahead of what has been written by more than the window."""
    drawn = written = 0
    entries = list(pipeline.list_entries([str(folder)], pytest.fail))

    def many(*_: object) -> Iterator:
        nonlocal drawn
        for _ in range(300):
            drawn += 1
            yield entries[0]

    class Counting(JsonlWriter):
        def append(self, paths: list[str], codes: np.ndarray) -> None:
            nonlocal written
            written += len(paths)
            assert drawn - written <= 3
            super().append(paths, codes)

    monkeypatch.setattr(pipeline, "list_entries", many)
    run(folder, Counting(tmp_path / "codes.jsonl"))
    assert drawn == 300


def test_torch_threads_are_left_alone(folder: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    run(folder, tmp_path / "codes.jsonl", workers=1)
    assert torch.get_num_threads() == before
