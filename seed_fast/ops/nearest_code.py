"""Nearest codebook entry (placeholder contract: the reference alone)."""

import torch
from torch import Tensor


def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Ids [...] int64 of the nearest rows of codebook [K, D] to z [..., D], in float64."""
    z64, e64 = z.double(), codebook.double()
    return torch.argmin(e64.square().sum(-1) - 2 * z64 @ e64.T, dim=-1)
