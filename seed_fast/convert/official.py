"""Convert official state dicts to a `SeedTokenizer` and back, and check that a checkpoint is complete."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor

from seed_fast.convert.files import CheckpointError, plain_names, unwrapped
from seed_fast.convert.names import POSITION_IDS, constant_names, official_names, parameter_shapes
from seed_fast.model.config import SeedConfig
from seed_fast.model.tokenizer import SeedTokenizer

logger = logging.getLogger(__name__)


def from_official(
    state_dict: Mapping[str, Tensor], config: SeedConfig, *, dtype: torch.dtype | None = None
) -> SeedTokenizer:
    """Build a tokenizer from a state dict with official names (SEED-1 or SEED-2, as `config` says).

    Tensors are shared with `state_dict` where the type allows it, so that nothing is held twice.

    Args:
        state_dict: {official name: tensor}, also with the wrappers and prefixes of training code (`module.`, ...).
            Tensors that the model doesn't have are left out, and logged once.
        config: the sizes, which a state dict doesn't fully show (numbers of heads).
        dtype: type of the weights. Default: the widest type among the tensors.

    Raises:
        CheckpointError (a ValueError): tensors are missing, or have another shape than `config` says.
    """
    state_dict = plain_names(unwrapped(state_dict))
    names = official_names(config)
    check_tensors({name: tensor.shape for name, tensor in state_dict.items()}, config, source="state dict")
    tensors = {ours: state_dict[official] for ours, official in names.items()}
    widest = dtype or reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))
    return adopt(config, {name: tensor.to(widest) for name, tensor in tensors.items()}, trained=True)


def to_official(tok: SeedTokenizer) -> dict[str, Tensor]:
    """Return the state dict of `tok` with official names, tensors shared with `tok`; the inverse of `from_official`."""
    ours = tok.state_dict()
    official = {name: ours[own] for own, name in official_names(tok.config).items()}
    for name in constant_names(tok.config):
        official[name] = torch.arange(POSITION_IDS.numel(), device=tok.device).view(POSITION_IDS)
    return official


def official_shapes(config: SeedConfig) -> dict[str, torch.Size]:
    """Return {official name: shape} for every tensor that `from_official` needs."""
    shapes = parameter_shapes(config)
    return {official: shapes[ours] for ours, official in official_names(config).items()}


def adopt(config: SeedConfig, tensors: Mapping[str, Tensor], *, trained: bool) -> SeedTokenizer:
    """Return a tokenizer whose weights are the given tensors themselves, {our name: tensor}, in eval mode."""
    tok = SeedTokenizer(config, device="meta")
    tok.load_state_dict(dict(tensors), assign=True)
    tok.trained = trained
    return tok.eval()


def check_tensors(shapes: Mapping[str, torch.Size], config: SeedConfig, *, source: str) -> None:
    """Compare official names and shapes with what `config` needs; log surplus names in one message.

    Raises:
        CheckpointError: tensors are missing, or have the wrong shape; the message names them and `source`.
    """
    needed = official_shapes(config)
    missing = [name for name in needed if name not in shapes]
    if missing:
        raise CheckpointError(
            f"{source}: must hold {len(needed)} tensors, but {len(missing)} are missing: {_some(missing)}"
        )
    for name, shape in needed.items():
        if shapes[name] != shape:
            raise CheckpointError(f"{source}: {name} must be {list(shape)} for this config, got {list(shapes[name])}")
    surplus = [name for name in shapes if name not in needed and name not in constant_names(config)]
    if surplus:
        logger.warning(
            "%s: left out %d tensors that this model doesn't have: %s", source, len(surplus), _kinds(surplus)
        )


def _some(names: list[str], count: int = 5) -> str:
    """Join the first names for a message."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _kinds(names: list[str], limit: int = 20) -> str:
    """Join names for a message; many names that differ in a layer number alone become one, with * for the number."""
    if len(names) > limit:
        kinds: dict[str, list[str]] = {}
        for name in names:
            kinds.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
        names = [kind if len(members) > 1 else members[0] for kind, members in kinds.items()]
    return ", ".join(names)
