"""Checkpoints of a running training: folders `step-00001000`, each whole or not there.

    model.safetensors       trainable parameters and buffers, float32 (frozen weights come from where they came from)
    optimizer.safetensors   <state>/<parameter>, such as exp_avg/tokenizer.quantizer.codebook
    average.safetensors     the moving average of the weights, where the run keeps one
    state.json              step, data position, loss scale, recipe

of a sharded model instead of the first three, each rank's part of all of them (`seed_fast.train.sharded`):

    model/, optimizer.<state>/, average/    shard-00001-....safetensors and so on, by names of parameters

No pickle. A folder is written beside, forced to the disk and renamed; a kill at any moment leaves the one before.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seed_fast._files import publish_folder, remove_folder, writing
from seed_fast.convert.files import CheckpointError
from seed_fast.distributed import sharded_like, trainable, whole

STATE = "state.json"
_NAME = re.compile(r"step-(\d{8,})")


def write(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Write `step-<step>` into `folder`, then drop all but the `keep` newest.

    Args:
        folder: made if it isn't there.
        step: optimizer steps done.
        tensors: file stem to name to tensor.
        state: what else must come back; for JSON.
        keep: how many to keep, at least 1.
    """
    with staged(folder, step, state, keep) as staging:
        for stem, named in tensors.items():
            plain = {name: tensor.contiguous() for name, tensor in named.items()}
            save_file(plain, staging / f"{stem}.safetensors")
    return folder / f"step-{step:08d}"


def staging_of(folder: Path, step: int) -> Path:
    """Where `staged` gathers the files of a checkpoint."""
    return folder / f".step-{step:08d}.partial"


@contextmanager
def staged(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> Iterator[Path]:
    """A folder for the tensors of a checkpoint, which at the end gets its name; arguments as of `write`.

    All but the `keep` newest checkpoints are dropped then. If something is raised, those that are there stay.
    """
    path, staging = folder / f"step-{step:08d}", staging_of(folder, step)
    _remove_leftovers(folder)
    with writing(path):
        try:
            staging.mkdir(parents=True)
            yield staging
            (staging / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
            publish_folder(staging, path, overwrite=True)  # the same step again, after a resume without progress
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)  # a full disk gets its room back
            raise
    for old in _all(folder)[:-keep]:
        remove_folder(old)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in `folder`, or None."""
    found = _all(folder)
    return found[-1] if found else None


def read_state(path: Path) -> dict[str, Any]:
    """The state that `write` was given.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / STATE}: must be the state of a training run, got: {error}") from None


def read_tensors(path: Path, stem: str) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    file = path / f"{stem}.safetensors"
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file}: must be a whole .safetensors file, got one that doesn't read: {error}"
        ) from None


def model_tensors(task: nn.Module) -> dict[str, Tensor]:
    """What training changes in `task`, whole and on the CPU. Every rank must call."""
    tensors = {name: whole(p) for name, p in trainable(task)}
    return tensors | {name: whole(buffer) for name, buffer in task.named_buffers()}


@torch.no_grad()
def load_model(task: nn.Module, tensors: Mapping[str, Tensor], *, source: Path) -> None:
    """The inverse of `model_tensors`.

    Raises:
        CheckpointError: a tensor is missing, surplus, or has another shape.
    """
    targets: dict[str, Tensor] = {**dict(trainable(task)), **dict(task.named_buffers())}
    for name in sorted(targets.keys() ^ tensors.keys()):
        raise CheckpointError(
            f"{source}: {'lacks' if name in targets else 'has a surplus'} {name}: made by another model or options"
        )
    for name, target in targets.items():
        if target.shape != tensors[name].shape:
            raise CheckpointError(f"{source}: {name} must be {list(target.shape)}, got {list(tensors[name].shape)}")
        target.copy_(sharded_like(tensors[name], target))


def optimizer_tensors(task: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name, whole and on the CPU. Every rank must call."""
    return {
        f"{key}/{name}": whole(value)
        for name, p in trainable(task)
        for key, value in optimizer.state.get(p, {}).items()
    }


def load_optimizer(task: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    parameters = dict(trainable(task))
    numbers = {p: number for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        key, _, name = full_name.partition("/")
        p = parameters[name]
        state.setdefault(numbers[p], {})[key] = sharded_like(tensor, p)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _all(folder: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _remove_leftovers(folder: Path) -> None:
    """Of runs that were killed."""
    for pattern in (".step-*.partial", ".step-*.old"):
        for path in folder.glob(pattern):
            shutil.rmtree(path)
