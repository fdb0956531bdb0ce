"""Checkpoints of a training run: folders `step-00001000`, each complete or absent.

    model.safetensors       trainable parameters and buffers, float32 (frozen weights are loaded from their source)
    optimizer.safetensors   <state>/<parameter>, such as exp_avg/tokenizer.quantizer.codebook
    average.safetensors     the moving average of the weights, if the run keeps one
    state.json              step, data position, loss scale, recipe

For a sharded model, the parts of each rank replace the first three files (`seed_fast.train.sharded`):

    model/, optimizer.<state>/, average/    shard-00001-....safetensors and so on, with the names of parameters

There is no pickle. A folder is written under another name, synced to the disk and renamed, so a kill at any moment
leaves the checkpoint before it.
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
    """Write the checkpoint `step-<step>` into `folder`, then remove all but the `keep` newest.

    Args:
        folder: is created if it doesn't exist.
        step: number of optimizer steps done.
        tensors: for each file's stem its tensors by name.
        state: everything else that a resume needs, for JSON.
        keep: number of checkpoints to keep, at least 1.

    Returns:
        The folder of the checkpoint.
    """
    with staged(folder, step, state, keep) as staging:
        for stem, named in tensors.items():
            plain = {name: tensor.contiguous() for name, tensor in named.items()}
            save_file(plain, staging / f"{stem}.safetensors")
    return folder / f"step-{step:08d}"


def staging_of(folder: Path, step: int) -> Path:
    """Return the folder in which `staged` gathers the files of a checkpoint."""
    return folder / f".step-{step:08d}.partial"


@contextmanager
def staged(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> Iterator[Path]:
    """Yield a folder for the tensors of a checkpoint, which gets the checkpoint's name at the end of the block.

    All but the `keep` newest checkpoints are removed then. If the block raises, existing ones stay. The arguments are
    those of `write`.
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
            shutil.rmtree(staging, ignore_errors=True)  # a full disk gets its space back
            raise
    for old in _all(folder)[:-keep]:
        remove_folder(old)


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder`, or None."""
    checkpoints = _all(folder)
    return checkpoints[-1] if checkpoints else None


def read_state(path: Path) -> dict[str, Any]:
    """Read the state of a checkpoint.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / STATE}: must be the state of a training run, got: {error}") from None


def read_tensors(path: Path, stem: str) -> dict[str, Tensor]:
    """Read the tensors of one file of a checkpoint.

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
    """Return all trainable parameters and buffers, gathered on the CPU. Every rank must call."""
    tensors = {name: whole(p) for name, p in trainable(task)}
    return tensors | {name: whole(buffer) for name, buffer in task.named_buffers()}


@torch.no_grad()
def load_model(task: nn.Module, tensors: Mapping[str, Tensor], *, source: Path) -> None:
    """Copy what `model_tensors` returned into `task`.

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
    """Return the optimizer's state as <state>/<parameter>, gathered on the CPU. Every rank must call."""
    return {
        f"{key}/{name}": whole(value)
        for name, p in trainable(task)
        for key, value in optimizer.state.get(p, {}).items()
    }


def load_optimizer(task: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Copy what `optimizer_tensors` returned into the optimizer."""
    parameters = dict(trainable(task))
    numbers = {p: number for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        key, _, name = full_name.partition("/")
        p = parameters[name]
        state.setdefault(numbers[p], {})[key] = sharded_like(tensor, p)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _all(folder: Path) -> list[Path]:
    """Return the checkpoints, oldest first."""
    numbered = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed runs have left unfinished."""
    for pattern in (".step-*.partial", ".step-*.old"):
        for path in folder.glob(pattern):
            shutil.rmtree(path)
