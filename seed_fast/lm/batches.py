"""Batches of a store's samples for the training loop: tasks mixed by ratios, packed or padded, on any number of ranks.

What an epoch holds is a function of (seed, epoch) alone. Its order is cut into windows; the samples of a window become
sequences, the sequences become rows, and rows follow each other from window to window. Every rank computes the rows of
a window and takes its share, so ranks agree without an exchange, and a position is three numbers: epoch, window, row.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import random
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from seed_fast._text import name_bytes
from seed_fast.data.order import EpochOrder, permute
from seed_fast.lm.packing import best_fit, collate
from seed_fast.lm.sequences import CAPTION_TASKS, TokenSequence, sample_sequence
from seed_fast.lm.vocabulary import Vocabulary

WINDOW = 1024  # samples packed together: with captions, less than 3 % of rows of 1024 tokens stay empty
_AHEAD = 2  # batches that a thread prepares while the model computes
_MOST_MESSAGES = 20

log = logging.getLogger("seed_fast.data")


class SampleSource(Protocol):
    """Samples numbered from 0; `seed_fast.data.tokens.open_tokens` gives one."""

    @property
    def codebook_size(self) -> int:
        """Number of entries of the codebook that the codes are from."""

    @property
    def groups(self) -> list[int]:
        """Number of samples of each shard."""

    @property
    def window(self) -> int | None:
        """See `EpochOrder`."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> dict[str, Any]:
        """See `seed_fast.data.tokens.samples`."""


class EpochEstimate(NamedTuple):
    """The size of an epoch, extrapolated from its first window."""

    rows: int  # of all ranks together
    tokens: int  # without padding
    filled: float  # share of a row's positions that aren't padding


def parse_tasks(text: str) -> dict[str, float]:
    """Parse ratios of tasks, such as "caption:1,drawing:1".

    Raises:
        ValueError: the text has another form, names a task that isn't in CAPTION_TASKS, or a ratio is negative.
    """
    tasks: dict[str, float] = {}
    for part in text.split(","):
        name, _, ratio = part.strip().partition(":")
        try:
            tasks[name] = float(ratio or 1)
        except ValueError:
            raise ValueError(f"tasks must be NAME:RATIO, comma-separated, got {text!r}") from None
    return _checked(tasks)


class SequenceBatches:
    """Batches of one rank, with an exact position; see `seed_fast.train.batches.Batches`.

    A batch is what `collate` gives: ids, labels, positions and segments, int64 [batch_size, T]. `skipped` counts the
    samples that could not be used, the same on every rank; the first ones are logged. A thread prepares the next
    batches while the model computes, so it may be ahead of the position.

    Args:
        source: where samples come from.
        vocabulary: ids of the language model's tokenizer.
        tokenizer: the language model's tokenizer.
        batch_size: rows per batch on each rank.
        length: with packing, tokens T of a row; without it, the most tokens a sample may have, and T is the length of
            the batch's longest sample.
        packing: put several samples into a row.
        tasks: how often an image with a caption is used for which task, as ratios. A sample's task, its caption if it
            has several, and which half comes first in pretraining are drawn from (seed, epoch, number of the sample).
        too_long: "skip" leaves out and counts samples that are longer than `length`; "error" refuses them. None is ever
            cut.
        seed: seed of order and draws.
        rank: number of this process, from 0.
        world: number of processes.
        shuffle: False keeps the order of the source, and makes the same draws in every epoch.
        drop_last: leave out the rows at the end of an epoch that don't fill a batch on all ranks. False divides these
            as evenly as possible.
        window: number of samples that are packed together.

    Raises:
        ValueError: wrong arguments; the message names them.
    """

    def __init__(
        self,
        source: SampleSource,
        vocabulary: Vocabulary,
        tokenizer: Any,
        *,
        batch_size: int,
        length: int,
        packing: bool = True,
        tasks: Mapping[str, float] | None = None,
        too_long: Literal["skip", "error"] = "skip",
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
        window: int = WINDOW,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("length", length), ("window", window)):
            if value < 1:
                raise ValueError(f"SequenceBatches: {name} must be at least 1, got {value}")
        if not 0 <= rank < world:
            raise ValueError(f"SequenceBatches: rank must be in 0..world - 1, got rank {rank} of {world}")
        if too_long not in ("skip", "error"):
            raise ValueError(f"SequenceBatches: too_long must be 'skip' or 'error', got {too_long!r}")
        if not len(source):
            raise ValueError("SequenceBatches: source must hold a sample, got none")
        if source.codebook_size != vocabulary.codebook_size:
            raise ValueError(
                f"SequenceBatches: codes must be of a codebook of {vocabulary.codebook_size}, for which the vocabulary "
                f"has tokens, got {source.codebook_size}"
            )
        self.tasks = _checked(tasks or {"caption": 1.0})
        self.source, self.vocabulary = source, vocabulary
        self.tokenizer = copy.deepcopy(tokenizer)  # a fast one can't be used by two threads at once
        self._one_at_a_time = threading.Lock()
        self.batch_size, self.length, self.packing = batch_size, length, packing
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch = 0
        self.skipped = 0
        self._place = (0, 0)  # of the epoch's next row: number of its window, and number of rows before it there
        self._too_long, self._shuffle, self._drop_last, self._window = too_long, shuffle, drop_last, window

    def __len__(self) -> int:
        """Number of batches of an epoch: exact without packing if no sample is skipped, otherwise extrapolated."""
        return max(1, self.estimate().rows // (self.batch_size * self.world))

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next batch, the same on all ranks; any number of ranks can resume from it."""
        window, row = self._place
        return {"epoch": self.epoch, "window": window, "row": row, "rows_from": self._settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the position that `state_dict` returned.

        Raises:
            ValueError: it is a position in other data, or one under other settings.
        """
        if state.keys() != self.state_dict().keys():
            raise ValueError(
                f"SequenceBatches: expected a state with {', '.join(self.state_dict())}, got {list(state)}"
            )
        for name, here in self._settings().items():
            before = state["rows_from"].get(name)
            if before != here:
                raise ValueError(f"SequenceBatches: the run was begun with {name} {before!r}, now it is {here!r}")
        if min(state["epoch"], state["window"], state["row"]) < 0:
            raise ValueError(f"SequenceBatches: no such place: {state}")
        self.epoch, self._place = state["epoch"], (state["window"], state["row"])

    def estimate(self) -> EpochEstimate:
        """Estimate the size of the current epoch from its first window."""
        order, skipped = self._order(), self.skipped
        rows = self._rows_of_window(order, 0)
        self.skipped = skipped
        tokens = sum(len(sequence) for row in rows for sequence in row)
        scale = order.length / min(self._window, order.length)
        return EpochEstimate(round(len(rows) * scale), round(tokens * scale), tokens / max(1, len(rows) * self.length))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for place, batch in _ahead(self._steps()):
            self._place = place
            if batch is not None:
                yield batch
        self.epoch, self._place = self.epoch + 1, (0, 0)

    def _steps(self) -> Iterator[tuple[tuple[int, int], dict[str, Any] | None]]:
        """Yield, from the position to the end of the epoch, the position after each step and this rank's batch."""
        rows = self._rows()
        stride = self.batch_size * self.world
        while step := list(islice(rows, stride)):
            if len(step) < stride and self._drop_last:
                return
            first, last = (share * len(step) // self.world for share in (self.rank, self.rank + 1))
            mine = [row for _, row in step[first:last]]
            length = self.length if self.packing else None
            yield step[-1][0], collate(mine, pad=self.vocabulary.pad, length=length) if mine else None

    def _rows(self) -> Iterator[tuple[tuple[int, int], list[TokenSequence]]]:
        """Yield, from the position to the end of the epoch, the position after each row and the row."""
        order = self._order()
        window, done = self._place
        while window * self._window < order.length:
            rows = self._rows_of_window(order, window)
            for number in range(done, len(rows)):
                yield (window, number + 1), rows[number]
            window, done = window + 1, 0

    def _order(self) -> EpochOrder:
        name = f"{self.seed}/{self.epoch}" if self._shuffle else None
        return EpochOrder(self.source.groups, name, self.source.window)

    def _rows_of_window(self, order: EpochOrder, window: int) -> list[list[TokenSequence]]:
        """Return the rows of a window, each a list of sequences."""
        begin = window * self._window
        places = np.arange(begin, min(begin + self._window, order.length))
        with self._one_at_a_time:
            usable = [self._sequence(int(number)) for number in order.at(places)]
        sequences = [sequence for sequence in usable if sequence is not None]
        if not self.packing:
            return [[sequence] for sequence in sequences]
        rows = best_fit([len(sequence) for sequence in sequences], self.length)
        if self._shuffle and rows:  # best fit begins with the longest samples
            shuffled = permute(np.arange(len(rows)), len(rows), f"{self.seed}/{self.epoch}/{window}/rows")
            rows = [rows[number] for number in shuffled]
        return [[sequences[number] for number in row] for row in rows]

    def _sequence(self, number: int) -> TokenSequence | None:
        """Return the sequence of a sample in this epoch; None if the sample can't be used."""
        sample = self.source[number]
        # Draws depend on seed, epoch and sample alone, so that they are the same after a resume and on every rank.
        name = f"{self.seed}/{self.epoch if self._shuffle else 0}/{number}"
        draws = random.Random(int.from_bytes(hashlib.blake2b(name_bytes(name), digest_size=16).digest(), "little"))
        task = draws.choices(list(self.tasks), list(self.tasks.values()))[0]
        image_first = draws.random() < 0.5
        if sample["kind"] == "caption":
            sample = sample | {"text": draws.choice(sample["texts"])}
        try:
            sequence = sample_sequence(self.vocabulary, self.tokenizer, sample, task, image_first=image_first)
        except ValueError as error:
            self._skip(number, sample, str(error))
            return None
        if len(sequence) > self.length:
            problem = f"{len(sequence)} tokens, more than the {self.length} of a row"
            if self._too_long == "error":
                raise ValueError(f"{_name(number, sample)}: {problem}")
            self._skip(number, sample, problem)
            return None
        return sequence

    def _skip(self, number: int, sample: dict[str, Any], problem: str) -> None:
        """Count a sample that can't be used, and log the first ones."""
        self.skipped += 1
        if self.skipped <= _MOST_MESSAGES:
            last = " (the last to be told)" * (self.skipped == _MOST_MESSAGES)
            log.warning("skipped: %s: %s%s", _name(number, sample), problem, last)

    def _settings(self) -> dict[str, Any]:
        """Return everything that decides which row is where; a position has a meaning only under the same settings."""
        return {
            "seed": self.seed,
            "samples": len(self.source),
            "length": self.length,
            "packing": self.packing,
            "tasks": self.tasks,
            "shuffle": self._shuffle,
            "window": self._window,
        }


def _ahead(steps: Iterator[Any]) -> Iterator[Any]:
    """Yield the items of an iterator, which a thread prepares shortly before they are needed."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="seed_fast-sequences")
    try:
        waiting = deque(thread.submit(next, steps, None) for _ in range(_AHEAD))
        while (step := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, steps, None))
            yield step
    finally:
        thread.shutdown(cancel_futures=True)


def _checked(tasks: Mapping[str, float]) -> dict[str, float]:
    """Return valid ratios in the order of CAPTION_TASKS, since draws depend on the order."""
    for name, ratio in tasks.items():
        if name not in CAPTION_TASKS:
            raise ValueError(f"tasks must be of {', '.join(CAPTION_TASKS)}, got {name!r}")
        if not 0 <= ratio < float("inf"):
            raise ValueError(f"tasks: the ratio of {name} must be finite and not negative, got {ratio}")
    if not sum(tasks.values()):
        raise ValueError("tasks must have a ratio above 0, got none")
    return {name: float(tasks[name]) for name in CAPTION_TASKS if tasks.get(name)}


def _name(number: int, sample: dict[str, Any]) -> str:
    return f"sample {number}" + (f" ({sample['key']})" if sample.get("key") else "")
