"""Models that no process holds whole: filling, writing and reading their parts.

FSDP2 keeps a part of each parameter on each rank. A model is built without storage on all ranks; only rank 0 reads it
and broadcasts one parameter at a time. Checkpoints are written by torch.distributed.checkpoint as safetensors, each
rank its own part, and can be read on any number of ranks. `seed_fast.lm.streaming` writes the finished model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from seed_fast.convert.files import CheckpointError

_PARTS = "shard-*.safetensors"


def can_write_parts() -> bool:
    """True if this version of torch writes sharded checkpoints as safetensors (2.9 does)."""
    try:
        from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter  # noqa: F401
    except ImportError:
        return False
    return True


def fill(root: nn.Module, module: nn.Module, source: nn.Module | None, device: torch.device) -> None:
    """Give a sharded module without storage the values of rank 0's `source`. Every rank must call.

    Args:
        root: the sharded module, on the meta device.
        module: `root`, or a module in it.
        source: `module` with values, on the CPU; only rank 0's is read, others may pass None.
        device: device of the parts.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    root.to_empty(device=device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(module, source.state_dict() if source is not None else {}, options=options)
    values = dict(source.named_buffers()) if source is not None else {}
    for name, buffer in module.named_buffers():  # some are in no state dict, such as LLaMA's frequencies
        if name in values:
            buffer.copy_(values[name])
        dist.broadcast(buffer, src=0)


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this rank's parts of `tensors` into subfolders of `folder`, which must exist. Every rank must call.

    A rank builds a whole file in memory before it writes it. So each group of tensors, such as one of AdamW's two
    moments, has a folder of its own, and only one group's parts are in memory twice.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

    for group, members in _groups(tensors).items():
        save(members, storage_writer=HuggingFaceStorageWriter(str(folder / group), save_distributed=True))


def has_parts(folder: Path) -> bool:
    """True if the tensors of the checkpoint in `folder` were written by `write_parts`."""
    return any(folder.glob(f"*/{_PARTS}"))


def read_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read this rank's parts into `tensors`, whatever number of ranks wrote them. Every rank must call.

    Raises:
        CheckpointError: a tensor is missing, surplus or has another shape, or a file is damaged.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    for group, members in _groups(tensors).items():
        place = folder / group
        try:
            stored = HuggingFaceStorageReader(str(place)).read_metadata().state_dict_metadata
            shapes = {n: list(entry.size) for n, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}
            _compare(place, members, shapes)
            load(members, storage_reader=HuggingFaceStorageReader(str(place)))
        except CheckpointError:
            raise
        except Exception as error:  # readers, planners and the exchange between ranks raise many kinds
            reason = (" ".join(str(error).split()) or type(error).__name__)[:300]
            raise CheckpointError(f"{place}: must be part of a whole checkpoint, got: {reason}") from error


def _groups(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group tensors by the part of their names before the first slash, which is removed."""
    groups: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        group, _, name = full_name.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups


def _compare(place: Path, wanted: Mapping[str, Tensor], stored: Mapping[str, list[int]]) -> None:
    """Refuse a checkpoint whose tensors have other names or shapes."""
    for name in sorted(wanted.keys() ^ stored.keys()):
        raise CheckpointError(
            f"{place}: {'lacks' if name in wanted else 'has a surplus'} {name}: made by another model or options"
        )
    for name, tensor in wanted.items():
        if stored[name] != list(tensor.shape):
            raise CheckpointError(f"{place}: {name} must be {list(tensor.shape)}, got {stored[name]}")
