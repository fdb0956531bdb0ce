"""Pictures of the world are read back, from their pixels alone."""

from __future__ import annotations

import numpy as np
import pytest

from seed_fast.data import shapes


@pytest.mark.parametrize("seed", [3, 20])
def test_true_pictures_are_read_without_an_error(seed):
    for index in range(60):
        scene = shapes.scene(seed, index, "test")
        found = {(item.colour, item.shape): item for item in shapes.read(shapes.render(scene, 64))}
        assert found.keys() == {(item.colour, item.shape) for item in scene.objects}, (seed, index)
        for item in scene.objects:
            read = found[item.colour, item.shape]
            assert abs(read.x - item.x) <= 2
            assert abs(read.y - item.y) <= 2
            assert (read.size, read.position) == (item.size, item.position)


@pytest.mark.parametrize("pattern", shapes.PATTERNS)
@pytest.mark.parametrize("background", shapes.BACKGROUNDS)
def test_a_background_alone_shows_no_object(background, pattern):
    scene = shapes.Scene((), background, pattern, 3, (8, -8), 7, 0, 0, 0, "train")
    assert shapes.read(shapes.render(scene, 64)) == ()


def test_the_reader_says_what_it_needs():
    with pytest.raises(ValueError, match=r"must be \[64, 64, 3\], got \[32, 32, 3\]"):
        shapes.read(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(TypeError, match="must be uint8, got float32"):
        shapes.read(np.zeros((64, 64, 3), np.float32))
