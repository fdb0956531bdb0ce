"""Batches over ranks, workers and resumed runs: every sample once, in an order that depends on seed and epoch alone."""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seed_fast.data import shapes
from seed_fast.data.image_processor import ImageProcessor
from seed_fast.data.pairs import Pairs, open_pairs
from tests.pictures import encoded, picture, write_files


def opened(spec: str, **options: object) -> Pairs:
    return open_pairs(spec, **{"image_size": 16, "batch_size": 3} | options)


def keys(pairs: Pairs, batches: int | None = None) -> list[str]:
    return [key for batch in islice(pairs, batches) for key in batch["keys"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven pictures with captions, the fifth torn."""
    files = {f"{number:02d}.png": encoded(picture(number), "PNG") for number in range(11)}
    files |= {f"{number:02d}.txt": f"picture number {number}\n".encode() for number in range(11)}
    files["05.png"] = files["05.png"][:100]
    return write_files(tmp_path / "data", files)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_an_epoch_over_all_ranks_has_every_sample_once(count: int, batch_size: int, world: int, epoch: int) -> None:
    ranks = [
        opened(
            f"shapes:{count}", image_size=8, batch_size=batch_size, rank=rank, world=world, drop_last=False, seed=epoch
        )
        for rank in range(world)
    ]
    for pairs in ranks:
        pairs.set_epoch(epoch)
    seen = [key for pairs in ranks for key in keys(pairs)]
    assert len(seen) == len(set(seen)) == count


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 4))
def test_training_leaves_out_less_than_one_batch_and_ranks_stay_level(count: int, batch_size: int, world: int) -> None:
    options = {"image_size": 8, "batch_size": batch_size, "world": world}
    if count < batch_size * world:
        with pytest.raises(ValueError, match=rf"shapes:{count}: {count} samples make no batch of {batch_size}"):
            opened(f"shapes:{count}", **options)
        return
    ranks = [opened(f"shapes:{count}", rank=rank, **options) for rank in range(world)]
    batches = [[batch["keys"] for batch in pairs] for pairs in ranks]
    assert {len(each) for each in batches} == {len(ranks[0])} == {count // (batch_size * world)}
    seen = [key for each in batches for batch in each for key in batch]
    assert all(len(batch) == batch_size for each in batches for batch in each)
    assert len(seen) == len(set(seen)) > count - batch_size * world


def test_ranks_together_make_the_batches_of_one_process() -> None:
    alone = [batch["keys"] for batch in opened("shapes:40", batch_size=6)]
    ranks = [[batch["keys"] for batch in opened("shapes:40", batch_size=2, rank=rank, world=3)] for rank in range(3)]
    assert alone == [list(chain(*parts)) for parts in zip(*ranks, strict=True)]


def test_epochs_and_seeds_differ_and_repeat_exactly() -> None:
    pairs = opened("shapes:30")
    first, second = keys(pairs), keys(pairs)
    assert first != second, "an iteration goes on with the next epoch"
    assert sorted(first) == sorted(second)
    pairs.set_epoch(0)
    assert keys(pairs) == first
    assert keys(opened("shapes:30", seed=1)) != first


@given(st.integers(0, 9), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_a_run_goes_on_where_it_stopped_on_any_number_of_ranks(done: int, before: int, after: int) -> None:
    whole = keys(opened("shapes:60", batch_size=1, drop_last=False))
    ranks = [opened("shapes:60", batch_size=2, rank=rank, world=before, drop_last=False) for rank in range(before)]
    seen = [key for pairs in ranks for key in keys(pairs, done)]
    states = [pairs.state_dict() for pairs in ranks]
    assert all(state == states[0] for state in states)
    resumed = [opened("shapes:60", batch_size=3, rank=rank, world=after, drop_last=False) for rank in range(after)]
    for pairs in resumed:
        pairs.load_state_dict(states[0])
        pairs.set_epoch(states[0]["epoch"])
    seen += [key for pairs in resumed for key in keys(pairs)]
    assert sorted(seen) == sorted(whole)


def test_a_state_taken_at_the_end_of_an_epoch_begins_the_next() -> None:
    pairs = opened("shapes:9")
    keys(pairs, 3)
    state = pairs.state_dict()
    assert (state["epoch"], state["position"]) == (1, 0)
    resumed = opened("shapes:9")
    resumed.load_state_dict(state)
    resumed.set_epoch(1)
    second = keys(resumed)
    assert second == keys(pairs)
    assert len(second) == 9


def test_what_makes_no_batch_on_more_ranks_is_left_out_with_the_rest() -> None:
    alone = opened("shapes:9", batch_size=2)
    keys(alone, 3)
    for rank in range(2):
        pairs = opened("shapes:9", batch_size=2, rank=rank, world=2)
        pairs.load_state_dict(alone.state_dict())
        assert (pairs.epoch, pairs.position) == (1, 0), "three are left, and two ranks need four"


@pytest.mark.parametrize("change", [{"seed": 5}, {"samples": 31}, {"position": 99}, {"epoch": -1}, {"more": 1}])
def test_a_state_of_other_data_is_refused(change: dict[str, int]) -> None:
    pairs = opened("shapes:30")
    with pytest.raises(ValueError, match=r"^shapes:30: "):
        pairs.load_state_dict(pairs.state_dict() | change)


@pytest.mark.parametrize("augment", [False, True])
def test_workers_give_what_the_main_process_gives(folder: Path, augment: bool) -> None:
    results = []
    for workers in (0, 2):
        pairs = opened(str(folder), workers=workers, augment=augment, drop_last=False)
        results.append(list(pairs))
        assert pairs.skipped == 1
        pairs.close()
    for here, there in zip(*results, strict=True):
        assert here["keys"] == there["keys"]
        assert here["captions"] == there["captions"]
        assert torch.equal(here["pixels"], there["pixels"])


def test_a_batch_is_what_the_image_processor_makes_of_the_files(folder: Path) -> None:
    pairs = opened(str(folder), split="val", batch_size=4, resize="bilinear")
    batches = list(pairs)
    assert [batch["pixels"].shape[0] for batch in batches] == [4, 3, 3], "the torn picture is missing"
    files = [folder / f"{number:02d}.png" for number in range(4)]
    assert batches[0]["keys"] == list(map(str, files))
    assert batches[0]["captions"] == [f"picture number {number}" for number in range(4)]
    assert torch.equal(batches[0]["pixels"], ImageProcessor(16, "bilinear")(files))


def test_a_torn_sample_is_skipped_counted_and_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs = opened(str(folder), drop_last=False)
    assert len(keys(pairs)) == 10
    assert pairs.skipped == 1
    assert [record.getMessage().startswith(f"skipped: {folder}/05.png: ") for record in caplog.records] == [True]


def test_training_batches_stay_full_with_torn_samples_on_any_number_of_ranks(folder: Path) -> None:
    alone = opened(str(folder), batch_size=10)
    batches = list(alone)
    assert [len(batch["keys"]) for batch in batches] == [10]
    assert alone.skipped <= 1
    for epoch in range(3):
        whole, ranks = opened(str(folder), batch_size=10), []
        whole.set_epoch(epoch)
        for rank in range(2):
            ranks.append(opened(str(folder), batch_size=5, rank=rank, world=2))
            ranks[-1].set_epoch(epoch)
        assert list(chain(*map(keys, ranks))) == keys(whole)


def test_data_without_one_usable_picture_is_an_error(tmp_path: Path) -> None:
    files = {f"{number}.{kind}": b"?" * (kind == "txt") for number in range(5) for kind in ("png", "txt")}
    with pytest.raises(ValueError, match=r"100 samples in a row can't be used; the last: .*png: the file is empty"):
        keys(opened(str(write_files(tmp_path, files))))


def test_augmentation_differs_between_epochs_and_not_between_runs(folder: Path) -> None:
    def crops(epoch: int) -> dict[str, torch.Tensor]:
        pairs = opened(str(folder), augment=True, drop_last=False)
        pairs.set_epoch(epoch)
        return {key: row for batch in pairs for key, row in zip(batch["keys"], batch["pixels"], strict=True)}

    first, again, later = crops(0), crops(0), crops(1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], later[key]) for key in first)


def test_shapes_are_drawn_at_the_size_asked_for_and_never_cropped() -> None:
    plain, augmented = (next(iter(opened("shapes:9", augment=augment, normalize=False))) for augment in (False, True))
    assert torch.equal(plain["pixels"], augmented["pixels"])
    number = int(plain["keys"][0].split("/")[-1])
    scene = shapes.scene(0, number)
    np.testing.assert_array_equal(plain["pixels"][0].numpy(), shapes.render(scene, 16))
    assert plain["captions"][0] == shapes.caption(scene)


def test_fresh_shapes_are_others_in_every_epoch_and_held_out_ones_are_distinct() -> None:
    fixed, fresh = opened("shapes:9,seed=4"), opened("shapes:9,seed=4,fresh")
    assert set(keys(fixed)) == set(keys(fresh))
    assert set(keys(fixed)) & set(keys(fresh)) == set()
    held_out = [caption for batch in opened("shapes:500", split="val") for caption in batch["captions"]]
    assert len(set(held_out)) == 500


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"rank": 2, "world": 2}, "rank must be in 0..world - 1, got rank 2 of 2"),
        ({"split": "dev"}, "split must be one of train, val, test, got 'dev'"),
        ({"image_size": 0}, "image_size must be a positive integer"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened("shapes:30", **options)
