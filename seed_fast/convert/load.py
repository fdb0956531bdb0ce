"""`load_tokenizer`, behind `SeedTokenizer.from_pretrained`, and `convert`, behind `seed-fast convert`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from seed_fast.convert.official import adopt
from seed_fast.convert.save import entries_as, write_folder
from seed_fast.convert.source import Checkpoint, open_checkpoint
from seed_fast.model.config import SeedConfig
from seed_fast.model.dtypes import DTYPE_BY_NAME
from seed_fast.model.tokenizer import SeedTokenizer


def load_tokenizer(
    name: str | Path | Sequence[str | Path],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    config: SeedConfig | None = None,
) -> SeedTokenizer:
    """Load a tokenizer; `SeedTokenizer.from_pretrained` describes arguments and errors.

    Memory holds the model once, and one tensor of the file beside it.
    """
    checkpoint = open_checkpoint(name, config)
    tensors = dict(checkpoint.tensors(device=device or "cpu", dtype=_dtype(dtype) or torch.float32))
    return adopt(checkpoint.config, tensors, trained=checkpoint.trained)


def convert(
    source: str | Path | Sequence[str | Path],
    destination: str | Path,
    *,
    preset: str | SeedConfig | None = None,
    dtype: torch.dtype | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Convert a checkpoint to this package's format, with one tensor at a time in memory.

    Args:
        source: what `SeedTokenizer.from_pretrained` takes.
        destination: folder to write; a checkpoint that is there stays until the new one is complete.
        preset: preset name or config of an official checkpoint. Default: recognised by its tensors.
        dtype: type to store, "float32", "bfloat16" or "float16". Default: the stored type of each tensor.
        progress: called with (bytes written, bytes in total) after each tensor.

    Returns:
        The folder's absolute path.

    Raises:
        CheckpointError: the checkpoint can't be read or lacks weights.
        FileNotFoundError, OSError, ValueError: see `SeedTokenizer.from_pretrained`.
    """
    config = SeedConfig.preset(preset) if isinstance(preset, str) else preset
    stored = _dtype(dtype)
    checkpoint = open_checkpoint(source, config)
    entries = entries_as(checkpoint.entries, stored)
    tensors = _counted(checkpoint, stored, progress)
    return write_folder(destination, checkpoint.config, tensors, trained=checkpoint.trained, entries=entries)


def _counted(
    checkpoint: Checkpoint, dtype: torch.dtype | None, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the checkpoint's tensors, and report after each how many bytes are done."""
    entries = entries_as(checkpoint.entries, dtype).values()
    total = sum(entry.shape.numel() * entry.dtype.itemsize for entry in entries)
    done = 0
    for name, tensor in checkpoint.tensors(dtype=dtype):
        yield name, tensor
        done += tensor.numel() * tensor.element_size()
        if progress is not None:
            progress(done, total)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the dtype of a name; a dtype or None stays as it is."""
    if dtype is None or dtype in DTYPE_BY_NAME.values():
        return dtype  # type: ignore[return-value]
    if isinstance(dtype, str) and dtype in DTYPE_BY_NAME:
        return DTYPE_BY_NAME[dtype]
    raise ValueError(f"dtype must be one of {', '.join(DTYPE_BY_NAME)}, got {dtype!r}")
