"""Lets Triton run its kernels on the interpreter of PTX: a driver of an sm_80 device, under Triton's own JIT.

Specialization, compilation and grids are Triton's and the package's; only loading and launching a binary end here.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from tests.ptx.machine import ptx

DEVICE = 1000  # no GPU has this number, so nothing that was compiled for one is taken


class Launcher:
    """Called by Triton for each launch, with the arguments of the kernel in the order of its source."""

    def __init__(self, src: Any, metadata: Any) -> None:
        self.types = list(src.signature.values())
        self.metadata = metadata

    def __call__(self, x: int, y: int, z: int, stream: int, text: str, *rest: Any) -> None:
        arguments = rest[4:]  # behind packed metadata, launch metadata and two hooks
        given = zip(self.types, arguments, strict=True)
        values = [value for kind, value in given if kind != "constexpr" and value is not None]
        places = ptx.parameters(text, self.metadata.name)
        values += [0] * (len(places) - len(values))  # scratch memory, which these kernels don't use
        packed = bytearray(places[-1][0] + places[-1][1])
        for (offset, size), value in zip(places, values, strict=True):
            if isinstance(value, Tensor):
                value = value.data_ptr()
            code = "fd"[size == 8] if isinstance(value, float) else {1: "b", 2: "h", 4: "i", 8: "q"}[size]
            struct.pack_into("<" + code, packed, offset, value)
        threads = 32 * self.metadata.num_warps
        ptx.launch(text, self.metadata.name, (x, y, z), threads, self.metadata.shared, bytes(packed))


class Driver:
    """What triton.runtime asks of a driver."""

    launcher_cls = Launcher

    def __init__(self) -> None:
        self.text = ""
        self.utils = SimpleNamespace(
            load_binary=lambda name, binary, shared, device: (object(), self.text, 0, 0, 1024),
            unload_module=lambda module: None,
            get_device_properties=lambda device: {"max_shared_mem": 163 * 1024, "multiprocessor_count": 108},
        )

    def remember(self, module: Any, function: Any, name: str, files: dict[str, str], digest: str) -> None:
        self.text = next(Path(path).read_text() for file, path in files.items() if file.endswith(".ptx"))

    def get_current_device(self) -> int:
        return DEVICE

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 80, 32)


@contextlib.contextmanager
def sm80() -> Iterator[None]:
    """Triton launches on the machine; combine with `call`."""
    stand_in, before = Driver(), driver._active
    driver.set_active(stand_in)
    knobs.runtime.kernel_load_start_hook.add(stand_in.remember)
    try:
        yield
    finally:
        knobs.runtime.kernel_load_start_hook.remove(stand_in.remember)
        driver._active = before
