"""The order in which an epoch visits its samples: a function of (seed, epoch) alone, computed place by place.

No permutation of the whole data set is drawn or held in memory. So a run can resume at any place of an epoch, on any
number of ranks, and every rank knows the order of all ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from seed_fast._text import name_bytes

_ROUNDS = 6
_MIX = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))  # MurmurHash3's finaliser
_SHIFT = np.uint64(33)


def permute(places: np.ndarray, length: int, name: str) -> np.ndarray:
    """Evaluate a pseudo-random permutation of range(length) at some places.

    A Feistel network over the next even power of two, repeated for values that fall outside until none does ("cycle
    walking"): a bijection whatever the round function is.

    Args:
        places: int64 [n], each in [0, length).
        name: seed of the permutation.

    Returns:
        int64 [n].
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    keys = np.frombuffer(hashlib.blake2b(name_bytes(name), digest_size=8 * _ROUNDS).digest(), dtype="<u8")
    values = places.astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        values[outside] = _feistel(values[outside], np.uint64(half), keys)
        outside = outside[values[outside] >= length]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    low_bits = np.uint64((1 << int(half)) - 1)
    left, right = values >> half, values & low_bits
    for key in keys:
        mixed = right ^ key
        for factor in _MIX:
            mixed = (mixed ^ (mixed >> _SHIFT)) * factor  # modulo 2^64
        left, right = right, left ^ ((mixed ^ (mixed >> _SHIFT)) & low_bits)
    return (left << half) | right


class EpochOrder:
    """The order of the samples in an epoch.

    Args:
        groups: number of samples of each shard; samples are numbered shard by shard. One group if there are no shards.
        name: seed of the order; None: samples come as they are numbered.
        window: number of samples that are shuffled with each other. The shards are shuffled, put one after the
            other, cut into windows, and each window is shuffled, so that few files are read at a time. None: one window
            of all samples.
    """

    def __init__(self, groups: Sequence[int], name: str | None, window: int | None = None) -> None:
        self.length = int(sum(groups))
        self._name = name
        self._window = min(window or self.length, self.length)
        counts = np.asarray(groups, dtype=np.int64)
        self._begins = np.cumsum(counts) - counts  # number of each group's first sample
        self._shuffled = np.arange(len(counts))
        if name is not None and self._window < self.length:
            self._shuffled = permute(self._shuffled, len(counts), f"{name}/groups")
        self._ends = np.cumsum(counts[self._shuffled])  # in the order of the epoch

    def at(self, places: np.ndarray) -> np.ndarray:
        """Return the samples at these places of the epoch: int64 [n] to int64 [n]."""
        if self._name is None:
            return places
        mixed = np.empty_like(places)
        for window in np.unique(places // self._window):
            inside = places // self._window == window
            begin = window * self._window
            length = int(min(self._window, self.length - begin))
            mixed[inside] = begin + permute(places[inside] - begin, length, f"{self._name}/{window}")
        group = np.searchsorted(self._ends, mixed, side="right")
        before = np.concatenate(([0], self._ends))[group]
        return self._begins[self._shuffled[group]] + mixed - before
