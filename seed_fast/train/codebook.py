"""A codebook initialised by K-means of encoded queries, in place of the official U(-1/K, 1/K) around zero.

With the official initialisation most entries are the nearest to no query and are never trained. With K-means every
entry starts with a share of the queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from seed_fast.distributed import Ranks, concatenate
from seed_fast.model.tokenizer import SeedTokenizer
from seed_fast.ops import nearest_code
from seed_fast.train.batches import Batch, Batches, endless

VECTORS_PER_ENTRY = 8
ITERATIONS = 10


@torch.no_grad()
def codebook_from_data(
    tokenizer: SeedTokenizer,
    batches: Batches,
    ranks: Ranks,
    *,
    seed: int,
    causal: Callable[[Batch], Tensor] | None = None,
) -> None:
    """Set the codebook to the K-means centres of the encoded queries of the first batches; the position is restored.

    Args:
        tokenizer: its codebook is changed in place, equally on all ranks.
        batches: batches of this rank.
        ranks: this process among all.
        seed: seed of the initial centres.
        causal: batch -> causal embeddings [B, N, C], in place of the tokenizer's own.
    """
    # Encode queries until there are enough on all ranks together.
    size = len(tokenizer.quantizer.codebook)
    position = batches.state_dict()
    stream: Iterator[Batch] = endless(batches)
    parts: list[Tensor] = []
    while sum(map(len, parts)) * ranks.world < VECTORS_PER_ENTRY * size:
        batch = next(stream)
        batch["pixels"] = batch["pixels"].to(ranks.device)
        queries = causal(batch) if causal is not None else tokenizer.causal_embeddings(batch["pixels"])
        queries = queries.to(tokenizer.dtype)  # a cache may keep them in half precision
        parts.append(tokenizer.quantizer.encode_task(queries).flatten(0, 1))
    del stream  # ends the iteration, so that it can't move the position that is restored
    batches.load_state_dict(position)
    # Every rank has all queries; the first rank's centres count, as rounding may differ between machines.
    centres = k_means(concatenate(torch.cat(parts)).float(), size, seed)
    tokenizer.quantizer.codebook.copy_(ranks.from_first(centres.cpu()))


def k_means(vectors: Tensor, count: int, seed: int, iterations: int = ITERATIONS) -> Tensor:
    """Run Lloyd's algorithm: `count` centres [count, D] of vectors [M, D]; an empty one moves to a random vector.

    Raises:
        ValueError: fewer vectors than centres, or vectors that aren't finite.
    """
    if len(vectors) < count or not vectors.isfinite().all():
        raise ValueError(f"k_means: needs at least {count} finite vectors, got {len(vectors)}")
    generator = torch.Generator().manual_seed(seed)
    centres = vectors[torch.randperm(len(vectors), generator=generator)[:count].to(vectors.device)]
    for _ in range(iterations):
        ids = nearest_code(vectors, centres)
        sums = torch.zeros_like(centres).index_add_(0, ids, vectors)
        counts = torch.bincount(ids, minlength=count)[:, None]
        others = vectors[torch.randint(len(vectors), (count,), generator=generator).to(vectors.device)]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), others)
    return centres
