"""Tokenising pictures with captions, batch by batch, into items of a store."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from seed_fast.data.codes import encode_resized, no_codes
from seed_fast.data.image_processor import ImageProcessor
from seed_fast.data.pool import Pool
from seed_fast.data.samples import Loaded, View, map_samples
from seed_fast.data.shards import WHOLE, Split
from seed_fast.data.sources import Source
from seed_fast.data.tokens.record import Item, Items
from seed_fast.model.encoder import ImageEncoder


def picture_items(
    tok: ImageEncoder,
    source: Source,
    processor: ImageProcessor,
    *,
    batch_size: int,
    workers: int = 0,
    start: int = 0,
    split: Split = WHOLE,
) -> Items:
    """Yield every sample of a source with its codes and all of its captions, in order.

    Args:
        tok: the model on its device, or its inference plan.
        source: data set, see `seed_fast.data.sources.open_source`.
        processor: resizes pictures; its `image_size` must be the model's.
        batch_size: pictures per forward pass.
        workers: processes that read and decode; 0: none.
        start: number of places to pass over.
        split: part of the places that belongs to this process.

    Raises:
        WorkerDied: a decoding process was killed.
    """
    first = start + (split.index - start) % split.count
    places = range(first, len(source), split.count)
    view = View(processor, seed=0, epoch=0, augment=False, random_caption=False, all_captions=True)
    samples = (source.sample(place, 0) for place in places)
    pool = Pool(workers, ahead=2 * batch_size)
    try:
        loaded = zip(places, map_samples(pool, samples, view), strict=True)
        while batch := list(islice(loaded, batch_size)):
            yield from _items(tok, processor, batch)
    finally:
        pool.close()


def _items(tok: ImageEncoder, processor: ImageProcessor, batch: list[tuple[int, Loaded]]) -> Iterator[Item]:
    usable = [row.pixels for _, row in batch if row.pixels is not None]
    codes = iter(encode_resized(tok, processor, np.stack(usable)) if usable else ())
    for place, row in batch:
        if row.error is not None:
            yield Item(place, None, row.error)
            continue
        own = next(codes)
        if own[0] < 0:
            yield Item(place, None, no_codes(row.key, tok))
        else:
            caption = {"codes": own, "text": row.captions[0], "texts": row.captions}
            yield Item(place, {"kind": "caption", "key": row.key, **caption}, None)
