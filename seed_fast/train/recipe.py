"""`Recipe`, what the result of a run depends on, and `Run`, what it doesn't."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seed_fast.model.dtypes import DTYPE_BY_NAME
from seed_fast.train.optimizer import Schedule


@dataclass(frozen=True)
class Recipe:
    """What the result depends on. A run resumes under the same recipe alone."""

    batch_size: int  # samples per optimizer step, over all ranks and micro-batches
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
        """The learning rate by step."""
        return Schedule(
            self.lr, self.min_lr, self.warmup_lr, self.warmup_steps, self.epochs, self.epoch_steps, self.cosine
        )  # fmt: skip

    def micro_batch(self, world: int) -> int:
        """Samples per rank and micro-batch.

        Raises:
            ValueError: the batch doesn't divide.
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
    """Where to, and how often what; a resumed run may change these."""

    output: Path
    log_every: int = 10
    save_every: int = 500
    validate_every: int = 0  # 0: after the last step alone
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
        """Folder of the run's checkpoints."""
        return self.output / "checkpoints"
