"""Rates of the inference plan's matrix products on this CPU: `python -m benchmarks.e2e.matrix_products`.

For each product and each library, GFLOP/s of CPU time per thread, which other programs disturb less than wall time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from seed_fast import SeedConfig
from seed_fast.model.cpu_products import ROUTES, blocks, onednn_takes, run

ROUNDS = 5


def shapes(config: SeedConfig, images: int) -> dict[str, tuple[int, int, int]]:
    """{product: (rows, summed, columns)} of the plan for a batch of `images`."""
    width, ffn, seen = config.qformer_dim, config.qformer_ffn_dim, config.vit_dim
    tokens, queries = images * config.num_tokens, images * config.num_codes
    crosses = -(-config.qformer_depth // config.cross_attention_every)
    return {
        "ViT, queries, keys and values": (tokens, seen, 3 * seen),
        "ViT, output": (tokens, seen, seen),
        "ViT, FFN up": (tokens, seen, config.vit_ffn_dim),
        "ViT, FFN down": (tokens, config.vit_ffn_dim, seen),
        "Q-Former, queries, keys and values": (queries, width, 3 * width),
        "Q-Former, output": (queries, width, width),
        "Q-Former, FFN up": (queries, width, ffn),
        "Q-Former, FFN down": (queries, ffn, width),
        "projected keys and values": (tokens, seen, 2 * width * crosses),
        "absorbed, scores of one image": (config.num_codes * config.qformer_heads, seen, config.num_tokens),
        "absorbed, sums of one image": (config.num_codes * config.qformer_heads, config.num_tokens, seen),
    }


@torch.no_grad()
def rates(rows: int, summed: int, columns: int, dtype: torch.dtype) -> dict[str, float]:
    """{library: GFLOP/s of a product followed by GELU}, from the fastest of interleaved rounds.

    Args:
        rows, summed, columns: sizes of the product [rows, summed] x [summed, columns].
        dtype: dtype of both factors.
    """
    x, weight, bias = (torch.randn(size).to(dtype) for size in ((rows, summed), (columns, summed), (columns,)))
    calls: dict[str, Callable[[Tensor], object]] = {}
    for name, route in ROUTES.items():
        if not route.onednn or onednn_takes(x.device, dtype):
            calls[name] = partial(run, route, weight=blocks(weight) if route.blocked else weight, bias=bias, gelu=True)
    fewest = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.process_time()
            call(x)
            fewest[name] = min(fewest[name], time.process_time() - start)
    return {name: 2 * rows * summed * columns / seconds / 1e9 for name, seconds in fewest.items()}


def main() -> int:
    """Print one table per dtype."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.e2e.matrix_products", description=__doc__)
    parser.add_argument("--images", type=int, default=8, help="images per batch")
    parser.add_argument("--model", default="seed-2", help="preset whose sizes are taken")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; CPU time counts them all")
    options = parser.parse_args()
    if min(options.images, options.threads) < 1:
        parser.error("--images and --threads must be at least 1")
    torch.set_num_threads(options.threads)
    for dtype in (torch.float32, torch.bfloat16):
        print(f"{str(dtype).removeprefix('torch.')}, {options.images} images, GFLOP/s of a thread")
        for name, shape in shapes(SeedConfig.preset(options.model), options.images).items():
            by_library = "  ".join(f"{library} {rate:4.0f}" for library, rate in rates(*shape, dtype).items())
            print(f"  {name:36s} {'x'.join(map(str, shape)):16s} {by_library}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
