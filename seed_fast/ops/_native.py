"""Report what the compiled module, Triton, xFormers and the GPU of this machine can do; nothing here raises.

The `..._unavailable` functions return a reason as text, or "" where the library works.
"""

from __future__ import annotations

import os
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from seed_fast import _env
from seed_fast.ops import _dispatch

# Element types as csrc/include/dtype.h numbers them.
DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
# Compute capability from which on Triton uses tensor cores and generates right code; older GPUs have the CUDA kernels.
TRITON_MINIMUM = (8, 0)

# Notes on backends, for `seed_fast.ops._dispatch.Backend`.
CUDA_NOTE = "compiled for every architecture, executed on the host by the C++ tests, never yet run on a GPU"
TRITON_NOTE = "tested under the Triton interpreter, never yet run on a GPU"


@lru_cache(maxsize=1)
def load() -> tuple[ModuleType | None, str]:
    """Return (the compiled module, ""), or (None, why it cannot be imported)."""
    try:
        from seed_fast import _C
    except ImportError as error:
        return None, f"the compiled module seed_fast._C is not there ({error})"
    return _C, ""


def module() -> Any:
    """Return the compiled module; call it only where `cpu_unavailable()` or `cuda_unavailable()` returned ""."""
    return load()[0]


def cpu_unavailable() -> str:
    """Return why the C++ CPU kernels cannot run on this machine, or "" where they can."""
    return load()[1]


@lru_cache(maxsize=1)
def cuda_unavailable() -> str:
    """Return why the CUDA kernels of the compiled module cannot run on this machine, or "" where they can."""
    if load()[0] is None:
        return load()[1]
    available, reason = module().cuda_available()
    if not available:
        return str(reason)
    return "" if torch.cuda.is_available() else "this torch sees no CUDA device"


def triton_unavailable() -> str:
    """Return why Triton kernels cannot run on this machine, or "" where they can, if only under the interpreter."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton is not installed ({error})"
    if triton_interprets():
        return ""
    if not torch.cuda.is_available():
        return "no CUDA device (TRITON_INTERPRET=1 runs Triton kernels on the CPU, for tests)"
    return ""


def triton_interprets() -> bool:
    """Return True if TRITON_INTERPRET is set: Triton's interpreter then runs its kernels on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "on")


def triton_device_objections(tensor: Tensor) -> list[str]:
    """Return why a Triton kernel cannot run on the device of a tensor; an empty list where it can.

    The interpreter reads CPU tensors, but only where backend "triton" is forced: it is slow, and meant for tests.
    """
    if tensor.is_cuda:
        is_old = torch.cuda.get_device_capability(tensor.device) < TRITON_MINIMUM
        return ["the GPU is older than sm_80"] if is_old else []
    return [] if triton_interprets() and _dispatch.forced() == "triton" else [f"the tensor is on {tensor.device}"]


def device_objections(wanted: str, **tensors: Tensor) -> list[str]:
    """Return which tensors, given by their names, are not on a device of type `wanted`; an empty list if all are."""
    return [f"{name} is on {x.device}" for name, x in tensors.items() if x.device.type != wanted]


def dtype_objections(**dtypes: torch.dtype) -> list[str]:
    """Return which arguments, given by their names, have a dtype that no kernel takes; an empty list if all fit."""
    return [
        f"{name} is {str(dtype).removeprefix('torch.')}" for name, dtype in dtypes.items() if dtype not in DTYPE_CODES
    ]


def contiguous_rows(x: Tensor) -> Tensor:
    """Return x [N, D] with contiguous rows, copied only where they are not."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def xformers_unavailable() -> str:
    """Return why xFormers cannot run on this machine, or "" where it can."""
    try:
        from xformers.ops import memory_efficient_attention  # noqa: F401
    except ImportError as error:
        return f"xformers is not installed ({error}): pip install 'seed-fast[xformers]'; for a V100: xformers==0.0.30"
    return "" if torch.cuda.is_available() else "this torch sees no CUDA device"


def threads() -> int:
    """Return how many threads one call of a CPU kernel may use: as many as torch would."""
    return torch.get_num_threads()


def isa() -> str:
    """Return the highest instruction set that CPU kernels may use (SEED_FAST_CPU_ISA), or "" for no limit."""
    return _env.get("SEED_FAST_CPU_ISA")


def stream(tensor: Tensor) -> int:
    """Return the handle of the current CUDA stream on the tensor's device, the integer that launchers take."""
    return torch.cuda.current_stream(tensor.device).cuda_stream
