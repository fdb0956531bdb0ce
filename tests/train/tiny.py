"""The smallest trainings of both stages, on pairs in memory; also a script, for tests that kill or launch processes."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

import torch

from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.distributed import Ranks, gather_with_gradient, gather_without_gradient
from seed_fast.model.captions import WordTokenizer
from seed_fast.model.stage1 import Stage1Model
from seed_fast.train.loop import Loop
from seed_fast.train.recipe import Recipe, Run
from seed_fast.train.stage1 import Stage1
from seed_fast.train.stage2 import Stage2

CONFIG = replace(
    SeedConfig.preset("seed-tiny"),
    image_size=16,
    vit_dim=16,
    vit_depth=1,
    vit_heads=2,
    vit_ffn_dim=24,
    qformer_dim=16,
    qformer_depth=2,
    qformer_heads=2,
    qformer_ffn_dim=24,
    num_codes=4,
    codebook_size=32,
    code_dim=4,
    decoder_depth=1,
    decoder_heads=2,
    generation_dim=16,
)
WORDS = ["red", "green", "blue", "round", "square", "big", "small", "left", "right", "above"]
RECIPE = Recipe(
    batch_size=8, epochs=5, epoch_steps=4, lr=1e-3, min_lr=1e-4, warmup_lr=1e-5, warmup_steps=3, cosine="epoch"
)


class ListBatches:
    """Random pairs in memory, in an order for each epoch that any number of ranks shares; `batch_size` is per rank."""

    def __init__(
        self, batch_size: int, *, rank: int = 0, world: int = 1, count: int = 32, seed: int = 0, dtype=torch.float32
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.pixels = torch.randn(count, 3, CONFIG.image_size, CONFIG.image_size, generator=generator).to(dtype)
        picks = torch.randint(len(WORDS), (count, 5), generator=generator).tolist()
        self.captions = [" ".join(WORDS[i] for i in pick[: 2 + number % 4]) for number, pick in enumerate(picks)]
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.epoch = self.batch = 0
        self.seen: list[str] = []

    def __iter__(self):
        order = torch.randperm(len(self.pixels), generator=torch.Generator().manual_seed(self.epoch))
        size = self.batch_size * self.world
        while self.batch < len(order) // size:
            begin = self.batch * size + self.rank * self.batch_size
            chosen = order[begin : begin + self.batch_size].tolist()
            self.batch += 1
            keys = [str(i) for i in chosen]
            self.seen += keys
            yield {"pixels": self.pixels[chosen], "captions": [self.captions[i] for i in chosen], "keys": keys}
        self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self):
        return {"epoch": self.epoch, "sample": self.batch * self.batch_size * self.world}

    def load_state_dict(self, state):
        self.epoch, self.batch = state["epoch"], state["sample"] // (self.batch_size * self.world)


def stage1(*, dropout: float = 0.0, gather=gather_with_gradient) -> Stage1:
    torch.manual_seed(1)
    captions = WordTokenizer.of_captions([" ".join(WORDS)])
    model = Stage1Model(SeedTokenizer(CONFIG), captions.size, projection_dim=8, max_tokens=32)
    return Stage1(model, captions, dropout=dropout, gather=gather)


def stage2(*, dropout: float = 0.0) -> Stage2:
    torch.manual_seed(1)
    tok = SeedTokenizer(CONFIG)
    return Stage2(tok, lambda batch: batch["pixels"].flatten(1)[:, : CONFIG.generation_dim], dropout=dropout)


def loop(task, output: Path, *, recipe: Recipe = RECIPE, ranks: Ranks | None = None, validation=None, **run) -> Loop:
    ranks = ranks or Ranks(0, 1, torch.device("cpu"))
    size, dtype = recipe.micro_batch(ranks.world), next(task.parameters()).dtype
    batches = ListBatches(size, rank=ranks.rank, world=ranks.world, dtype=dtype)
    return Loop(task, batches, recipe, Run(output, **{"log_every": 1, **run}), ranks, validation=validation)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--save-every", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds added to each step")
    parser.add_argument("--keep", type=int, default=20)
    parser.add_argument("--official-gather", action="store_true")
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--ema", type=float)
    parser.add_argument("--clip", type=float)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--double", action="store_true", help="weights, data and all that is computed in float64")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ranks = Ranks.join(torch.device("cpu"))
    gather = gather_without_gradient if options.official_gather else gather_with_gradient
    task = stage1(dropout=options.dropout, gather=gather) if options.stage == 1 else stage2(dropout=options.dropout)
    if options.double:
        task.double()
    task.register_forward_hook(lambda *_: time.sleep(options.pause))
    recipe = replace(RECIPE, epochs=options.epochs, ema=options.ema, clip=options.clip, dtype=options.dtype)
    run = {"save_every": options.save_every, "resume": True, "fsdp": options.fsdp, "keep": options.keep}
    finished = loop(task, options.output, recipe=recipe, ranks=ranks, **run)()
    if ranks.rank == 0 and finished:
        (options.output / "finished").touch()
    ranks.leave()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
