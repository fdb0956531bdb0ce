"""The order of an epoch: every sample once, another one each time, few shards at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seed_fast.data.order import EpochOrder, permute


@given(st.integers(1, 3000), st.integers(0, 5))
def test_a_permutation_takes_every_value_once(length: int, seed: int) -> None:
    assert sorted(permute(np.arange(length), length, str(seed))) == list(range(length))


def test_a_permutation_is_evaluated_at_any_place_of_a_huge_range() -> None:
    length = 10**12 + 7
    places = np.random.default_rng(0).integers(0, length, 1000)
    values = permute(places, length, "a")
    assert len(set(values)) == len(set(places))
    assert values.min() >= 0
    assert values.max() < length
    np.testing.assert_array_equal(permute(places[::-1], length, "a"), values[::-1])


@pytest.mark.parametrize("length", [2, 3, 5, 8])
def test_small_permutations_are_all_reached_about_equally_often(length: int) -> None:
    first = [permute(np.arange(length), length, str(seed))[0] for seed in range(2000)]
    counts = np.bincount(first, minlength=length)
    assert ((counts - 2000 / length) ** 2 / (2000 / length)).sum() < 30, "chi-squared with at most 7 degrees of freedom"


def test_neighbours_do_not_stay_together() -> None:
    values = permute(np.arange(10_000), 10_000, "a")
    assert (np.abs(np.diff(values)) == 1).sum() < 15
    assert abs(np.corrcoef(np.arange(10_000), values)[0, 1]) < 0.05


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=8).filter(any), st.integers(1, 100), st.integers(0, 3))
def test_an_epoch_visits_every_sample_of_every_shard_once(groups: list[int], window: int, seed: int) -> None:
    order = EpochOrder(groups, str(seed), window)
    places = np.arange(sum(groups))
    whole = order.at(places)
    assert sorted(whole) == list(places)
    np.testing.assert_array_equal(np.concatenate([order.at(places[place : place + 1]) for place in places]), whole)


def test_a_window_bounds_how_many_shards_are_read_at_a_time() -> None:
    shard_of = EpochOrder([100] * 50, "a", window=200).at(np.arange(5000)) // 100
    for begin in range(0, 5000, 200):
        assert len(set(shard_of[begin : begin + 200])) == 2
    assert list(dict.fromkeys(shard_of)) != sorted(set(shard_of)), "shards are shuffled"


def test_without_a_name_the_order_is_that_of_the_data() -> None:
    np.testing.assert_array_equal(EpochOrder([3, 4], None, 2).at(np.arange(7)), np.arange(7))
