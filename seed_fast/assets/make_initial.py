"""Write the embedded seed-tiny with initial weights: `python -m seed_fast.assets.make_initial [folder]`.

The weights are the official initialisation at a fixed seed, with one change: the codebook. Its official start, 1/K
around zero, gives nearly every photograph the same few codes. Here its entries are the encoded queries of seeded random
pictures (smooth noise of many scales), so codes differ between photographs and a demo has something to show. They mean
nothing until seed-tiny is trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from seed_fast.convert.folder import write_folder
from seed_fast.convert.source import ASSETS, EMBEDDED
from seed_fast.model.config import SeedConfig
from seed_fast.model.tokenizer import SeedTokenizer

SEED = 20230717
PICTURES = 256
SCALES = (2, 3, 5, 8, 16, 32)  # cells of noise per side


def random_pictures(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Pictures [count, 3, size, size] with normalised colours: sums of smooth noise, coarse scales strongest."""
    pictures = torch.zeros(count, 3, size, size)
    for cells in SCALES:
        noise = torch.randn(count, 3, cells, cells, generator=generator)
        pictures += F.interpolate(noise, size=(size, size), mode="bicubic", align_corners=False) / cells**0.5
    return pictures


def make_initial() -> SeedTokenizer:
    """seed-tiny with initial weights, each one a number that float16 can store."""
    config = SeedConfig.preset(EMBEDDED)
    torch.manual_seed(SEED)
    tok = SeedTokenizer(config).half().float()
    generator = torch.Generator().manual_seed(SEED)
    with torch.inference_mode():
        causal = tok.causal_embeddings(random_pictures(PICTURES, config.image_size, generator))
        candidates = tok.quantizer.encode_task(causal).flatten(0, 1)
        chosen = torch.randperm(len(candidates), generator=generator)[: config.codebook_size]
    with torch.no_grad():
        tok.quantizer.codebook.copy_(candidates[chosen].half())
    return tok


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ASSETS / EMBEDDED
    tok = make_initial()
    write_folder(folder, tok.config, tok.half().state_dict(), trained=False)
    print(f"{folder}: seed-tiny with initial weights, seed {SEED}")


if __name__ == "__main__":
    main()
