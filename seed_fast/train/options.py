"""The options of `seed-fast train`, as given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from seed_fast.data.pairs import Pairs
from seed_fast.train.recipe import Recipe, Run


@dataclass(frozen=True)
class TrainOptions:
    """The options that both stages share, as given; the command line has their help."""

    data: str
    output: Path
    model: str
    validation: str | None
    validation_split: str
    batch_size: int
    accumulate: int
    epochs: int
    epoch_steps: int | None
    lr: float
    min_lr: float
    warmup_lr: float
    warmup_steps: int
    cosine: str
    weight_decay: float
    clip: float | None
    dtype: str
    ema: float | None
    dropout: float
    seed: int
    device: str
    workers: int
    augment: bool | None
    cache_features: Path | None
    log_every: int
    save_every: int
    validate_every: int
    keep: int
    resume: bool
    fsdp: bool
    tensorboard: bool

    def run(self) -> Run:
        """Where to, and how often what."""
        return Run(
            self.output, self.log_every, self.save_every, self.validate_every, self.keep, self.resume, self.fsdp,
            self.tensorboard,
        )  # fmt: skip

    def recipe(self, batches: Pairs | None, device: torch.device) -> Recipe:
        """What the result depends on. An epoch has as many steps as the data has batches, unless they are given."""
        steps = self.epoch_steps or (len(batches) // self.accumulate if batches is not None else 1)
        dtype = self.dtype
        if dtype == "auto":
            dtype = "float16" if device.type == "cuda" else "float32"
        return Recipe(
            batch_size=self.batch_size, epochs=self.epochs, epoch_steps=steps, lr=self.lr, min_lr=self.min_lr,
            warmup_lr=self.warmup_lr, warmup_steps=self.warmup_steps, cosine=self.cosine,  # type: ignore[arg-type]
            weight_decay=self.weight_decay, clip=self.clip, dtype=dtype,  # type: ignore[arg-type]
            accumulate=self.accumulate, ema=self.ema, seed=self.seed,
        )  # fmt: skip


@dataclass(frozen=True)
class Stage1Options:
    """Further options of stage 1."""

    init: tuple[Path, ...]
    bert: Path | None
    projection_dim: int
    max_tokens: int
    label_smoothing: float
    official_gather: bool
    train_vision: bool


@dataclass(frozen=True)
class Stage2Options:
    """Further options of stage 2."""

    target: str
    codebook_init: str
    official_dropout: bool
