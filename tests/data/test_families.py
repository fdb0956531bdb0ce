"""Siblings: scenes that differ in little but their shapes, side by side in every order of training."""

from __future__ import annotations

import pytest

from seed_fast.data import shapes
from seed_fast.data.lists import DataError
from seed_fast.data.pairs import open_pairs
from seed_fast.data.sources import open_source

FAMILY = 4


def look(scene: shapes.Scene) -> tuple:
    """All but shapes and sizes."""
    things = tuple((item.colour, item.tilt, item.tint) for item in scene.objects)
    return things, scene.background, scene.pattern, scene.phase, scene.shade, scene.style


def test_siblings_share_all_but_shapes_and_sometimes_sizes_and_stay_in_their_split():
    resized = 0
    for index in range(150):
        first = shapes.scene(3, index)
        sibling = shapes.sibling(first, first.index + 1)
        assert look(sibling) == look(first)
        kinds = [(item.shape, item.colour, item.size) for item in sibling.objects]
        assert shapes.split_of(kinds) == first.split
        assert len({kind[:2] for kind in kinds}) == len(kinds)
        assert shapes.describes(shapes.parse(shapes.caption(sibling)), sibling)
        resized += [item.size for item in sibling.objects] != [item.size for item in first.objects]
    assert 0 < resized < 75


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
