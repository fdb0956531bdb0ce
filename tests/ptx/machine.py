"""Runs the project's CUDA and Triton backends on the interpreter of PTX (csrc/tests/ptx), without a GPU.

Everything above the kernels is the package's own: `seed_fast.ops.backends` allocates and launches, csrc/cuda's
launchers choose kernels, grids and arguments. What stands in for a GPU is the CUDA runtime below them, and here: CPU
tensors, whose every storage becomes an allocation that the kernels may touch.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seed_fast.ops import _native

ROOT = Path(__file__).parents[2]
_UNWRITTEN = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


def load_module() -> ModuleType | None:
    """seed_fast_ptx as `make ptx` built it, or None."""
    built = sorted((ROOT / "build/ptx/ptx").glob("seed_fast_ptx.*.so"))
    if not built:
        return None
    spec = importlib.util.spec_from_file_location("seed_fast_ptx", built[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ptx: Any = load_module()


class DeviceMemory(TorchDispatchMode):
    """Makes the storage of every tensor that torch returns an allocation, undefined where torch left it so."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, Any] = {}  # kept alive, so that no address is given out twice

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        defined = function._schema.name.split("::")[1] not in _UNWRITTEN
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.add(tensor, defined)
        return result

    def add(self, tensor: Tensor, defined: bool, read_only: bool = False, name: str = "a tensor") -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self.storages:
            if defined:
                ptx.define(storage.data_ptr(), storage.nbytes())
            return
        if storage.nbytes() == 0:
            return
        self.storages[storage.data_ptr()] = storage
        ptx.allocate(storage.data_ptr(), storage.nbytes(), defined, read_only, name)

    def give(self, tensor: Tensor, name: str) -> None:
        """An input: kernels must not write it, nor read what lies between its elements."""
        storage = tensor.untyped_storage()
        if storage.nbytes() == 0 or storage.data_ptr() in self.storages:
            return
        self.add(tensor, defined=False, read_only=True, name=name)
        size = tensor.element_size()
        touched = torch.zeros(storage.nbytes() // size, dtype=torch.bool)
        touched.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(True)
        if touched.all():
            ptx.define(storage.data_ptr(), storage.nbytes())
            return
        edges = torch.cat([touched[:1], touched[1:] != touched[:-1]]).nonzero().flatten().tolist()
        for begin, end in zip(edges[::2], [*edges[1::2], len(touched)], strict=False):
            ptx.define(storage.data_ptr() + begin * size, (end - begin) * size)


@contextlib.contextmanager
def gpu(
    *, seed: int = 1, tensor_cores: str = "worst", architecture: int = 70, multiprocessors: int = 80
) -> Iterator[DeviceMemory]:
    """CPU tensors count as tensors of a GPU of this architecture."""
    ptx.configure(seed=seed, tensor_cores=tensor_cores, architecture=architecture)
    with contextlib.ExitStack() as stack:
        for owner, name, result in (
            (_native, "module", ptx),
            (_native, "stream", 0),
            (torch.cuda, "device", contextlib.nullcontext()),
            (torch.cuda, "get_device_properties", SimpleNamespace(multi_processor_count=multiprocessors)),
        ):
            stack.enter_context(mock.patch.object(owner, name, return_value=result))
        memory = DeviceMemory()
        stack.callback(ptx.release_all)
        yield memory


def call(backend: Callable, *args: Any, **options: Any) -> Any:
    """backend(*args) on the machine; all that it returns was written by a kernel or by torch.

    Raises:
        seed_fast_ptx.Fault: a kernel did something wrong; the message says which, where and what.
    """
    with gpu(**options) as memory:
        for index, argument in enumerate(args):
            if isinstance(argument, Tensor):
                memory.give(argument, f"argument {index}")
        with memory:
            results = backend(*args)
        for tensor in tree_leaves(results):
            missing = (
                ptx.undefined_bytes(tensor.data_ptr(), tensor.numel() * tensor.element_size()) if tensor.numel() else 0
            )
            assert missing == 0, f"{missing} bytes of a result of shape {tuple(tensor.shape)} were never written"
        return results


def check_coverage(prefix: str, architecture: int, overall: float = 0.94, each: float = 0.85) -> None:
    """Check which share of the instructions of `prefix*.cu` was executed so far, all together and of each function.

    The compiler leaves code that no argument reaches, such as remainders of loops over a padded width.
    """
    lines, low, executed, total = [], [], 0, 0
    for source, arch, function, ran, count, missing in ptx.coverage():
        if not source.startswith(prefix) or arch != architecture or ran == 0:
            continue
        executed, total = executed + ran, total + count
        lines.append(f"{source}.cu sm_{arch} {function[-60:]}: {ran} of {count} instructions ({ran / count:.1%})")
        if ran < each * count:
            low.append(f"{function}: not lines {missing}")
    print("\n".join(lines))
    assert not low, f"fewer than {each:.0%} of the instructions were executed of " + "; ".join(low)
    assert executed >= overall * total, f"only {executed} of {total} instructions were executed:\n" + "\n".join(lines)
