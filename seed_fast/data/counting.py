"""Counting the images of inputs while the work goes on, for the total and the remaining time of a progress bar.

Files, folders, globs and lists of names are counted by their names alone. A tar shard would have to be read, so it is
counted by an index beside it (`shard.idx` or `shard.tar.idx`, as DALI's wds2idx writes it), and without one the total
stays unknown.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from seed_fast.data.shards import IMAGE_SUFFIXES, SHARD_SUFFIXES, WHOLE, Split, list_files


class Counting:
    """Counts the images of inputs in a thread of its own, which ends with the process at the latest.

    Args:
        inputs: files, folders, globs and shards, see `list_entries`.
        split: the part of the images to count.
    """

    def __init__(self, inputs: Iterable[str], split: Split = WHOLE) -> None:
        self._total: int | None = None
        self._stop = False
        self._thread = threading.Thread(target=self._count, args=(tuple(inputs), split), daemon=True)
        self._thread.start()

    @property
    def total(self) -> int | None:
        """The number of images; None if it isn't known yet, or can't be counted."""
        return self._total

    def close(self) -> None:
        """Stop counting, and wait until it has."""
        self._stop = True
        self._thread.join()

    def _count(self, inputs: tuple[str, ...], split: Split) -> None:
        total = count_images(inputs, lambda: self._stop)
        if total is not None:
            self._total = len(range(split.index, total, split.count))


def count_images(inputs: Iterable[str], stopped: Callable[[], bool] = lambda: False) -> int | None:
    """Return the number of images that `list_entries` finds; None if a shard has no index, or `stopped` became true."""
    total = 0
    for path in list_files(inputs, lambda line: None):
        found: int | None = 1
        if path.lower().endswith(SHARD_SUFFIXES):
            found = _indexed(Path(path))
        if found is None or stopped():
            return None
        total += found
    return total


def _indexed(shard: Path) -> int | None:
    """Count the images of a shard by its index, which has a line "suffix offset size [name]" for each file."""
    for index in (shard.with_suffix(".idx"), shard.with_name(shard.name + ".idx")):
        try:
            if index.stat().st_mtime < shard.stat().st_mtime:  # older than the shard, which may have changed
                continue
            version, *lines = index.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            continue
        width = {"v1.1": 3, "v1.2": 4}.get(version.split(" ")[0])
        if width is not None:
            return sum(
                f".{suffix}".lower().endswith(IMAGE_SUFFIXES) for line in lines for suffix in line.split(" ")[::width]
            )
    return None
