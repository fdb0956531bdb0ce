"""Resumable batches of pictures and captions for training and evaluation, on any number of ranks.

The order of an epoch is a function of (seed, epoch), and a place in it is one number: how many samples all ranks have
had together. So a resumed run repeats and loses nothing, on the same or another number of ranks.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from seed_fast.data.image_processor import ImageProcessor
from seed_fast.data.lists import DataError
from seed_fast.data.order import EpochOrder
from seed_fast.data.pool import Pool
from seed_fast.data.resize import ResizeMode
from seed_fast.data.samples import Loaded, View, map_samples
from seed_fast.data.sources import Source, open_source

_MOST_REPLACEMENTS = 100  # samples in a row that can't be used before a data set is given up
_MOST_MESSAGES = 20

log = logging.getLogger("seed_fast.data")


def open_pairs(
    spec: str,
    *,
    image_size: int,
    batch_size: int,
    resize: ResizeMode = "bicubic",
    augment: bool = False,
    split: str = "train",
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    shuffle: bool | None = None,
    drop_last: bool | None = None,
    all_captions: bool = False,
    normalize: bool = True,
    image_root: str | os.PathLike[str] | None = None,
) -> Pairs:
    """Open a data set of pictures and captions as batches.

    Args:
        spec: the data set as one line of text; docs/data.md lists the forms.
        split: part of the data set: "train", "val" or "test".
        image_size: side S of the pictures, px.
        batch_size: samples in a batch of each rank.
        resize: way to resize pictures that are not augmented; see `ImageProcessor`.
        augment: random crops and flips as official (`augment`), on all data but shapes.
        seed: seed of the order, the crops and the choice among captions.
        rank: number of this process, from 0.
        world: number of processes that share the data.
        workers: processes that read and decode; 0: none.
        shuffle: True: shuffle each epoch. Default: for the split "train" only.
        drop_last: every batch has `batch_size` samples: up to world * batch_size - 1 samples at the end of an epoch are
            left out, and the place of a sample that can't be used is taken by one from the other half of the epoch.
            Otherwise nothing is left out or repeated, and batches may be smaller. Default: for the split "train" only.
        all_captions: batches give every caption of a picture instead of one.
        normalize: False gives pixels as uint8 [B, S, S, 3], for `ImageProcessor.normalize` on the device.
        image_root: folder in which relative paths of a list begin; default: that of the list.

    Raises:
        ValueError: wrong arguments, or no such data; the message names them.

    Examples:
        >>> pairs = open_pairs("shapes:100", image_size=64, batch_size=10)
        >>> batch = next(iter(pairs))
        >>> batch["pixels"].shape, len(batch["captions"]), batch["keys"][0].startswith("shapes:train/0/")
        (torch.Size([10, 3, 64, 64]), 10, True)
    """
    training = split == "train"
    shuffle = training if shuffle is None else shuffle
    return Pairs(
        open_source(spec, split=split, image_root=image_root),
        ImageProcessor(image_size, resize),
        name=spec,
        batch_size=batch_size,
        augment=augment,
        seed=seed,
        rank=rank,
        world=world,
        workers=workers,
        shuffle=shuffle,
        drop_last=training if drop_last is None else drop_last,
        all_captions=all_captions,
        normalize=normalize,
    )


class Pairs:
    """One epoch of batches per iteration; made by `open_pairs`.

    A batch is a dict of `pixels` (normalised float32 [B, 3, S, S]), `captions` (B strings; lists of strings with
    `all_captions`) and `keys` (B strings).

    An iteration begins where the last one stopped and ends with its epoch; after that, the next epoch follows.
    `epoch` and `position` belong to the next batch. `skipped` counts how often a sample could not be used, on this
    rank since it was made; the first ones are logged.
    """

    def __init__(
        self,
        source: Source,
        processor: ImageProcessor,
        *,
        name: str,
        batch_size: int,
        augment: bool,
        seed: int,
        rank: int,
        world: int,
        workers: int,
        shuffle: bool,
        drop_last: bool,
        all_captions: bool,
        normalize: bool,
    ) -> None:
        if batch_size < 1 or workers < 0:
            raise ValueError(f"open_pairs: batch_size must be >= 1 and workers >= 0, got {batch_size} and {workers}")
        if not 0 <= rank < world:
            raise ValueError(f"open_pairs: rank must be in 0..world - 1, got rank {rank} of {world}")
        if drop_last and len(source) < batch_size * world:
            raise ValueError(
                f"{name}: {len(source)} samples make no batch of {batch_size} on {world} rank(s): lower batch_size"
            )
        self.source, self.processor, self.name = source, processor, name
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.epoch = 0
        self.position = 0  # samples of this epoch that all ranks have had together
        self.skipped = 0
        self._augment, self._shuffle, self._drop_last = augment, shuffle, drop_last
        self._all_captions, self._normalize = all_captions, normalize
        self._workers = workers
        self._pool: Pool | None = None

    def __len__(self) -> int:
        """Number of batches in a whole epoch."""
        whole, rest = divmod(len(self.source), self.batch_size * self.world)
        return whole if self._drop_last or not rest else whole + 1

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; within that epoch nothing changes."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Return where the next batch begins: the same on all ranks, and valid for any number of ranks."""
        return {"epoch": self.epoch, "position": self.position, "seed": self.seed, "samples": len(self.source)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with the batch at which `state_dict` was taken.

        Raises:
            ValueError: the state is of other data or another seed, where its position has no meaning.
        """
        if state.keys() != self.state_dict().keys():
            raise ValueError(f"{self.name}: expected a state with {', '.join(self.state_dict())}, got {list(state)}")
        for key, here in (("seed", self.seed), ("samples", len(self.source))):
            if state[key] != here:
                raise ValueError(f"{self.name}: the run was begun with {key} {state[key]}, now it is {here}")
        if state["epoch"] < 0 or not 0 <= state["position"] <= len(self.source):
            raise ValueError(f"{self.name}: no such place: {state}")
        self._go_to(state["epoch"], state["position"])

    def _go_to(self, epoch: int, position: int) -> None:
        """Set the place of the next batch; behind an epoch's last batch that is the start of the next epoch."""
        over = next(self._steps(position), None) is None
        self.epoch, self.position = (epoch + 1, 0) if over else (epoch, position)

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        name = f"{self.seed}/{self.epoch}" if self._shuffle else None
        order = EpochOrder(self.source.groups, name, self.source.window)
        epoch = self.epoch
        view = View(self.processor, self.seed, epoch, self._augment, self._shuffle, self._all_captions)
        start = self.position
        shares = (np.arange(begin, end) for _, begin, end in self._steps(start))
        samples = (self.source.sample(int(number), epoch) for share in shares for number in order.at(share))
        if self._pool is None:
            self._pool = Pool(self._workers, ahead=2 * self.batch_size)
        pool = self._pool
        results = map_samples(pool, samples, view)
        try:
            for after, begin, end in self._steps(start):
                rows = [self._usable(next(results), place, order, view, pool) for place in range(begin, end)]
                self._go_to(epoch, after)
                usable = [row for row in rows if row is not None]
                if usable:
                    yield self._batch(usable)
        finally:
            results.close()

    def _steps(self, start: int) -> Iterator[tuple[int, int, int]]:
        """Yield, for each batch, the place in the epoch after it and this rank's places, which lie side by side."""
        total, stride = len(self.source), self.batch_size * self.world
        for begin in range(start, total, stride):
            size = min(stride, total - begin)
            if size == stride or not self._drop_last:
                first, last = (begin + share * size // self.world for share in (self.rank, self.rank + 1))
                yield begin + size, first, last

    def _usable(self, loaded: Loaded, place: int, order: EpochOrder, view: View, pool: Pool) -> Loaded | None:
        """Return a sample; a bad one is replaced, by the same on any number of ranks, or left out (None)."""
        total = len(self.source)
        for attempt in range(_MOST_REPLACEMENTS):
            if loaded.error is None:
                return loaded
            self.skipped += 1
            if self.skipped <= _MOST_MESSAGES:
                log.warning("skipped: %s%s", loaded.error, " (the last to be told)" * (self.skipped == _MOST_MESSAGES))
            if not self._drop_last:
                return None
            other = (place + total // 2 + attempt) % total
            sample = self.source.sample(int(order.at(np.array([other]))[0]), view.epoch)
            loaded = next(map_samples(pool, [sample], view))
        raise DataError(f"{self.name}: {_MOST_REPLACEMENTS} samples in a row can't be used; the last: {loaded.error}")

    def _batch(self, rows: list[Loaded]) -> dict[str, Any]:
        import torch

        pixels = torch.from_numpy(np.stack([row.pixels for row in rows if row.pixels is not None]))
        return {
            "pixels": self.processor.normalize(pixels) if self._normalize else pixels,
            "captions": [list(row.captions) if self._all_captions else row.captions[0] for row in rows],
            "keys": [row.key for row in rows],
        }
