"""Codebook health: how much of the codebook a training run uses."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

DECAY = 0.99  # of the moving average of frequencies, per step
DEAD_AFTER = 100  # steps in which a code wasn't chosen


class CodebookHealth(nn.Module):
    """Tracks how often each of K codes is chosen, as a moving average over steps, and when each was last chosen.

    These are buffers, which checkpoints contain; they are equal on all ranks.
    """

    frequency: Tensor
    last_chosen: Tensor
    steps: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("frequency", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("last_chosen", torch.full((size,), -DEAD_AFTER, dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, codes: Tensor) -> None:
        """Take in the codes [B, N] of one step; every rank must call."""
        counts = torch.bincount(codes.flatten().clamp(min=0), minlength=len(self.frequency)).double()
        if dist.is_initialized():
            dist.all_reduce(counts)
        self.steps += 1
        self.frequency.mul_(DECAY).add_((1 - DECAY) * counts / counts.sum())
        self.last_chosen.copy_(torch.where(counts > 0, self.steps, self.last_chosen))

    def metrics(self) -> dict[str, float]:
        """Return usage (share of entries chosen in the last 100 steps), dead (number of the others) and perplexity."""
        alive = int((self.last_chosen > self.steps - DEAD_AFTER).sum())
        share = self.frequency / self.frequency.sum().clamp(min=torch.finfo(torch.float64).tiny)
        perplexity = float(torch.special.entr(share).sum().exp())
        size = len(self.frequency)
        return {"usage": alive / size, "dead": float(size - alive), "perplexity": perplexity}
