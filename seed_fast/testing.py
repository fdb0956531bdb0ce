"""Helpers that tests share: random official checkpoints, and the error budget of a computation in any dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from seed_fast.convert import official_shapes
from seed_fast.convert.names import POSITION_IDS, constant_names
from seed_fast.model.config import SeedConfig


def random_official_state_dict(
    config: SeedConfig, seed: int, *, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Return a state dict with official names and random weights that give each image codes of its own.

    Linear maps keep the scale of their input, norms are near 1, and nothing is zero, so that a tensor that is missing,
    swapped or transposed changes the codes.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in official_shapes(config).items():
        values = torch.randn(shape, generator=generator, dtype=dtype)
        if len(shape) == 1:
            is_scale = name.endswith("weight")
            values.mul_(0.1).add_(1.0 if is_scale else 0.0)
        elif not name.endswith(("embedding.weight", "tokens", "token")) and "pos_embed" not in name:
            values.mul_(shape[1:].numel() ** -0.5)
        weights[name] = values
    for name in constant_names(config):
        weights[name] = torch.arange(POSITION_IDS.numel()).view(POSITION_IDS)
    return weights


def error_ratio(actual: Tensor, peer: Tensor, truth: Tensor) -> float:
    """Return the root-mean-square error of `actual` against `truth`, as a multiple of the error of `peer`.

    Args:
        actual: the tested quantity, of any dtype.
        peer: the same quantity by the computation whose rounding sets the budget.
        truth: the same quantity in float64.
    """
    if truth.dtype != torch.float64:
        raise TypeError(f"error_ratio: truth must be float64, got {truth.dtype}")
    error = (actual.double() - truth).square().mean().sqrt().item()
    budget = (peer.double() - truth).square().mean().sqrt().item()
    if not budget > 0:
        raise ValueError("error_ratio: peer must differ from truth, or it is no budget")
    return error / budget


def check_budget(got: Tensor, truth: Tensor, peer: Tensor, factor: float = 2) -> None:
    """Compare the largest error of `got` against `truth` with `factor` times that of `peer`.

    `factor` units in the last place of the largest value are always allowed: `peer` may be exact by chance.

    Args:
        got: what is tested; any shape and dtype.
        truth: the same quantity in float64.
        peer: the same quantity by plain torch in the dtype of `got`; its error is the budget.
        factor: 2 for values, 3 for gradients.

    Raises:
        AssertionError: the error is larger, or not a number, or a shape or dtype differs.
    """
    assert got.shape == truth.shape == peer.shape, f"shapes {[*got.shape]}, {[*truth.shape]}, {[*peer.shape]}"
    assert got.dtype == peer.dtype, f"{got.dtype}, plain torch has {peer.dtype}"
    if got.numel() == 0:
        return
    error, allowed = ((x.double() - truth).abs().max().item() for x in (got, peer))
    allowed = factor * max(allowed, torch.finfo(got.dtype).eps * truth.abs().max().item())
    assert error <= allowed, f"off by {error:.3g}, allowed {allowed:.3g}"
