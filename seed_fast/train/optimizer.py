"""AdamW's parameter groups, the two learning-rate schedules, and the moving average of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seed_fast.distributed import trainable


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: matrices with weight decay; vectors and scalars (biases, norms, the temperature) without.

    Source: `get_optimizer_params` of the official lavis/models/base_model.py. In this model its rule by names (bias,
    ln, bn) selects nothing that its rule ndim < 2 doesn't. Embeddings, query tokens and the codebook decay there too.
    """
    decays = [p for _, p in trainable(module) if p.ndim >= 2]
    rest = [p for _, p in trainable(module) if p.ndim < 2]
    return [{"params": decays, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def adamw(
    module: nn.Module, weight_decay: float, *, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> torch.optim.AdamW:
    """Return AdamW over `parameter_groups`; `fused` updates a parameter in one pass over its memory."""
    return torch.optim.AdamW(parameter_groups(module, weight_decay), lr=lr, betas=betas, eps=eps, fused=True)


def begin_states(optimizer: torch.optim.Optimizer) -> None:
    """Give a fused AdamW the state that its first step would create, so that a checkpoint can be loaded into it."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
            }


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule: linear warmup, then a cosine from `peak` to `floor`.

    With `per="epoch"` it is the official schedule (`LinearWarmupCosineLRScheduler` of lavis/common/optims.py): the rate
    changes once per epoch, and the warmup ends with the first epoch at the latest. With `per="step"` it changes at
    every step and reaches `floor` at the last.

    Args:
        peak: highest rate.
        floor: rate at the end.
        warmup: rate at step 0.
        warmup_steps: number of warmup steps; 0 for none.
        epochs: number of epochs of the run.
        epoch_steps: optimizer steps per epoch.
        per: "epoch" or "step".
    """

    peak: float
    floor: float
    warmup: float
    warmup_steps: int
    epochs: int
    epoch_steps: int
    per: Literal["epoch", "step"] = "epoch"

    def __post_init__(self) -> None:
        if self.per not in ("epoch", "step"):
            raise ValueError(f"Schedule: per must be epoch or step, got {self.per!r}")
        for name in ("epochs", "epoch_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"Schedule: {name} must be at least 1, got {getattr(self, name)}")
        if self.warmup_steps < 0:
            raise ValueError(f"Schedule: warmup_steps must be at least 0, got {self.warmup_steps}")
        if not 0 <= self.floor <= self.peak:
            raise ValueError(f"Schedule: floor must be in 0..peak, got {self.floor} with a peak of {self.peak}")

    @property
    def steps(self) -> int:
        """Number of optimizer steps of the run."""
        return self.epochs * self.epoch_steps

    def __call__(self, step: int) -> float:
        """Return the rate of optimizer step `step`, counted from 0."""
        in_warmup = step < self.warmup_steps
        if self.per == "epoch":
            epoch = step // self.epoch_steps
            if epoch == 0:
                return self._warmup(step) if in_warmup else self.peak
            return self._cosine(epoch / self.epochs)
        if in_warmup:
            return self._warmup(step)
        return self._cosine((step - self.warmup_steps) / max(1, self.steps - 1 - self.warmup_steps))

    def _warmup(self, step: int) -> float:
        return self.warmup + (self.peak - self.warmup) * step / self.warmup_steps

    def _cosine(self, progress: float) -> float:
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class MovingAverage:
    """Exponential moving average (EMA) of the trainable parameters: average = decay * average + (1 - decay) * now."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"MovingAverage: decay must be in (0, 1), got {decay}")
        self.decay = decay
        self.average: dict[str, Tensor] = {name: p.detach().clone() for name, p in trainable(module)}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Add the weights after one step to the average."""
        for name, p in trainable(module):
            self.average[name].lerp_(p.detach(), 1 - self.decay)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange the averages with the module's weights; a second call undoes the first."""
        for name, p in trainable(module):
            now = p.detach().clone()
            p.copy_(self.average[name])
            self.average[name].copy_(now)
