"""Siblings: scenes that differ in one object, side by side in every order of training."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from seed_fast.data import shapes
from seed_fast.data.lists import DataError
from seed_fast.data.pairs import open_pairs
from seed_fast.data.sources import open_source

FAMILY = 4


def test_siblings_differ_in_one_object_each_in_its_shape_or_its_size():
    changed = Counter()
    for index in range(100):
        first = shapes.scene(3, index)
        family = [first, *(shapes.sibling(first, first.index + number) for number in range(1, 8))]
        assert len({shapes.caption(scene) for scene in family}) == 8
        for number, scene in enumerate(family[1:], start=1):
            assert scene.index == first.index + number
            assert replace(scene, objects=first.objects, index=first.index) == first
            [(before, after)] = [pair for pair in zip(first.objects, scene.objects, strict=True) if pair[0] != pair[1]]
            same = {"x": before.x, "y": before.y, "radius": before.radius}
            assert replace(after, shape=before.shape, size=before.size, **same) == before
            assert (after.shape != before.shape) != (after.size != before.size)
            changed["size" if after.size != before.size else "shape"] += 1
            kinds = [(item.shape, item.colour, item.size) for item in scene.objects]
            assert shapes.split_of(kinds) == first.split
            assert len({kind[:2] for kind in kinds}) == len(kinds)
            assert shapes.describes(shapes.parse(shapes.caption(scene)), scene)
    assert 0.15 < changed["size"] / changed.total() < 0.4


def test_a_family_larger_than_there_are_changes_repeats_itself():
    first = next(scene for scene in (shapes.scene(0, index) for index in range(99)) if len(scene.objects) == 1)
    captions = [shapes.caption(shapes.sibling(first, first.index + number)) for number in range(1, 40)]
    assert len(set(captions)) <= 11  # nine other shapes and two other sizes, if all of them are of this split
    assert captions[len(set(captions)) :] == captions[: -len(set(captions))]


def test_a_batch_holds_whole_families():
    pairs = open_pairs(f"shapes:64,family={FAMILY}", image_size=8, batch_size=4 * FAMILY, seed=1)
    batches = list(pairs)
    assert len(batches) == 4
    numbers = [[int(key.split("/")[2]) for key in batch["keys"]] for batch in batches]
    assert sorted(number for batch in numbers for number in batch) == list(range(64))
    for batch in numbers:
        assert all(sum(other // FAMILY == number // FAMILY for other in batch) == FAMILY for number in batch)
    assert numbers != sorted(numbers)


def test_the_first_of_a_family_is_the_scene_of_its_number():
    source = open_source(f"shapes:8,family={FAMILY}", split="train")
    alone = open_source("shapes:8", split="train")
    assert source.sample(4, 0).key != alone.sample(4, 0).key  # a cache must not take one for the other
    keys = {source.sample(number, 0).key for number in range(8)}
    assert len(keys) == 8


@pytest.mark.parametrize("spec", ["shapes:10,family=4", "shapes:8,family=0", "shapes:8,family=x"])
def test_a_count_that_is_no_number_of_families_is_refused(spec):
    with pytest.raises(DataError, match=f"^{spec}: expected shapes:COUNT"):
        open_source(spec, split="train")


def test_families_are_for_training_only():
    with pytest.raises(DataError, match="fresh, family: to train"):
        open_source("shapes:8,family=4", split="test")
