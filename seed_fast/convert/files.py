"""Read checkpoint files tensor by tensor, and write `.safetensors` files tensor by tensor.

A foreign pickle is only ever opened by `torch.load(weights_only=True)`: nothing in it runs. Files are memory-mapped.
The mapping is closed and opened again after every `PIECE` bytes, so that pages already copied leave memory.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seed_fast._disguise import disguised

PIECE = 64 * 2**20  # bytes copied from one mapping; opening a file again takes a few ms
_SAFETENSORS_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
# LAVIS's training code saves {"model": ..., "optimizer": ...}, Lightning "state_dict", DeepSpeed "module".
_WRAPPERS = ("model", "state_dict", "module", "model_state_dict")
_MOST_WRAPPERS = 8
_PREFIXES = ("module", "model")  # before every name: DistributedDataParallel, and a model inside another
# Parts of names that torch.compile, FSDP and activation checkpointing insert.
_INSERTED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


_ZIP = b"PK\x03\x04"


class CheckpointError(ValueError):
    """Raised when a file isn't a checkpoint, is damaged, or isn't the expected one; the message names it."""


class Entry(NamedTuple):
    """Shape and type of one tensor in a file."""

    shape: torch.Size
    dtype: torch.dtype


class TensorFile:
    """A `.safetensors` file or a PyTorch checkpoint (zip or legacy pickle).

    Attributes:
        entries: name to `Entry` of each tensor.
        is_mapped: True if the file is mapped and read in pieces, False if it is held as a whole (legacy pickles).
        metadata: strings of the header (`.safetensors` only).

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file isn't a checkpoint, is damaged, or its pickle wants more than tensors.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.is_mapped = True
        self.metadata: dict[str, str] = {}
        tensors = self._open()
        self.entries = {name: Entry(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}

    def read(
        self, names: Iterable[str], *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) for each of `names`; the tensors own their memory.

        Args:
            names: which tensors, in this order.
            device: where to put them.
            dtype: type to convert to; None keeps the stored type of each.
        """
        tensors: dict[str, Tensor] = {}
        copied = 0
        for name in names:
            if not tensors or (self.is_mapped and copied >= PIECE):
                tensors, copied = {}, 0  # close the old mapping before the new one is opened
                tensors = self._open()
            source = tensors.pop(name)
            copied += source.numel() * source.element_size()
            tensor = source.to(device=device, dtype=dtype or source.dtype, copy=self.is_mapped).contiguous()
            del source  # free what was read while the caller works with the copy
            yield name, tensor

    def _open(self) -> dict[str, Tensor]:
        """Return {plain name: tensor}; the tensors are views of the mapping where the file is mapped."""
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")
        tensors = self._open_safetensors() if self._is_safetensors() else self._open_torch()
        try:
            return plain_names(tensors)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {error}") from None

    def _is_safetensors(self) -> bool:
        """Return True for a .safetensors file, by its content: files of either kind may have the other's suffix."""
        with open(self.path, "rb") as file:
            head = file.read(9)
        # The file begins with the length of its header, whose lowest byte may equal the first byte of a pickle.
        if len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < self.path.stat().st_size:
            return True
        return self.path.suffix == ".safetensors" and not head.startswith((_ZIP, pickle.PROTO))

    def _open_safetensors(self) -> dict[str, Tensor]:
        try:
            with safe_open(self.path, framework="pt") as file:
                self.metadata = file.metadata() or {}
                # Views of the mapping: nothing is read from the disk yet.
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise CheckpointError(
                f"{self.path}: must be a whole .safetensors file, got "
                f"{disguised(self.path) or f'one that does not read: {error}'}"
            ) from None

    def _open_torch(self) -> dict[str, Tensor]:
        with open(self.path, "rb") as file:
            head = file.read(4)
        # The legacy format can only be read as a whole. A file named .safetensors must be given to torch open, because
        # torch would go by the name.
        is_misnamed = self.path.suffix == ".safetensors"
        self.is_mapped = head == _ZIP and not is_misnamed
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of pickles that it didn't write; they fail right after
                with open(self.path, "rb") if is_misnamed else nullcontext(self.path) as file:
                    content = torch.load(file, map_location="cpu", weights_only=True, mmap=self.is_mapped)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # a parser of foreign bytes may raise anything; the file is at fault
            what = disguised(self.path)
            if what is not None:
                raise CheckpointError(f"{self.path}: must be a whole PyTorch checkpoint, got {what}") from None
            raise CheckpointError(f"{self.path}: {_explain(error, is_pickle=head[:1] == pickle.PROTO)}") from error
        content = unwrapped(content)
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.path}: must hold a dict of tensors, got {type(content).__name__}")
        tensors = {
            name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)
        }
        if not tensors:
            raise CheckpointError(f"{self.path}: must hold a dict of tensors, got one without any")
        return tensors


def unwrapped(content: Any) -> Any:
    """Return the state dict inside what training code wraps around it, as in {"state_dict": {"model": ...}}."""
    for _ in range(_MOST_WRAPPERS):
        if not isinstance(content, Mapping) or any(isinstance(value, Tensor) for value in content.values()):
            return content
        inside = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inside is None:
            return content
        content = inside
    return content


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the names of the bare model, without what torch.compile, DDP and FSDP add to them.

    Raises:
        ValueError: two names become the same.
    """
    named = {name: ".".join(part for part in name.split(".") if part not in _INSERTED) for name in tensors}
    while named:
        prefix = next((each for each in _PREFIXES if all(n.startswith(f"{each}.") for n in named.values())), None)
        if prefix is None:
            break
        named = {name: plain.removeprefix(f"{prefix}.") for name, plain in named.items()}
    result: dict[str, Tensor] = {}
    for name, plain in named.items():
        if plain in result:
            raise ValueError(f"holds {plain} twice, also as {name}")
        result[plain] = tensors[name]
    return result


def _explain(error: Exception, *, is_pickle: bool) -> str:
    """Return the message for a file that `torch.load` could not read."""
    text = str(error)
    wanted = re.search(r"GLOBAL (\S+)", text)
    if isinstance(error, pickle.UnpicklingError) and (wanted or (is_pickle and "Unsupported operand" in text)):
        return (
            f"refused: its pickle wants {wanted[1] if wanted else 'more'}, and only tensors are read; nothing of it ran"
        )
    # Not torch's text for an UnpicklingError, which advises to load with weights_only=False.
    reason = "" if isinstance(error, pickle.UnpicklingError) or not text else f": {text.splitlines()[0][:200]}"
    return f"must be a whole PyTorch checkpoint, got a file that doesn't read as one ({type(error).__name__}{reason})"


def write_safetensors(
    path: Path, entries: Mapping[str, Entry], tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]
) -> None:
    """Write tensors one by one as they arrive; the library's own `save_file` needs all of them in memory.

    Args:
        path: file to write.
        entries: shape and type of every tensor, in the order in which they will come.
        tensors: (name, tensor) pairs.
        metadata: strings for the header.

    Raises:
        ValueError: a tensor isn't of a floating-point type, or isn't the one that `entries` announced.
    """
    # The header first: it says where each tensor will lie.
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (shape, dtype) in entries.items():
        if dtype not in _SAFETENSORS_TYPES:
            raise ValueError(f"{path}: {name} must be of a floating-point type, got {dtype}")
        begin, end = end, end + shape.numel() * dtype.itemsize
        header[name] = {"dtype": _SAFETENSORS_TYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    # Then the tensors, each checked against its announcement.
    expected = iter(entries.items())
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors:
            if (name, Entry(tensor.shape, tensor.dtype)) != next(expected, None):
                raise ValueError(
                    f"{path}: got {name} {list(tensor.shape)} {tensor.dtype}, not the next tensor announced"
                )
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        if next(expected, None) is not None:
            raise ValueError(f"{path}: fewer tensors came than were announced")
