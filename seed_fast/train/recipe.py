"""`Recipe`: settings that the result of a run depends on. `Run`: settings that it doesn't depend on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seed_fast.model.dtypes import DTYPE_BY_NAME
from seed_fast.train.optimizer import Schedule


@dataclass(frozen=True)
class Recipe:
    """Settings that the result depends on; a run resumes only under the same recipe."""

    batch_size: int  # samples per optimizer step, in all micro-batches of all ranks
    epochs: int
    epoch_steps: int
    lr: float
    min_lr: float
    warmup_lr: float
    warmup_steps: int
    cosine: Literal["epoch", "step"] = "epoch"
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = None  # largest norm of the gradient
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    accumulate: int = 1  # micro-batches per step
    ema: float | None = None  # decay of the moving average of the weights
    seed: int = 42

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BY_NAME:
            raise ValueError(f"Recipe: dtype must be one of {', '.join(DTYPE_BY_NAME)}, got {self.dtype!r}")
        for name in ("batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"Recipe: {name} must be at least 1, got {getattr(self, name)}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"Recipe: clip must be above 0, got {self.clip}")
        _ = self.schedule

    @property
    def schedule(self) -> Schedule:
        """The learning rate at each step."""
        return Schedule(
            self.lr, self.min_lr, self.warmup_lr, self.warmup_steps, self.epochs, self.epoch_steps, self.cosine
        )  # fmt: skip

    def micro_batch(self, world: int) -> int:
        """Return the number of samples per rank and micro-batch.

        Raises:
            ValueError: `batch_size` isn't a multiple of `world` * `accumulate`.
        """
        size, rest = divmod(self.batch_size, world * self.accumulate)
        if rest:
            raise ValueError(
                f"Recipe: batch_size must be a multiple of ranks * accumulate, {world} * {self.accumulate}, "
                f"got {self.batch_size}"
            )
        return size


@dataclass(frozen=True)
class Run:
    """Where a run saves, and how often it logs, saves and validates; a resumed run may change these."""

    output: Path
    log_every: int = 10
    save_every: int = 500
    validate_every: int = 0  # 0: only after the last step
    keep: int = 3
    resume: bool = False
    fsdp: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name, least in (("log_every", 1), ("save_every", 1), ("validate_every", 0), ("keep", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"Run: {name} must be at least {least}, got {getattr(self, name)}")

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.output / "checkpoints"
