"""What the compiled module and the GPU of this machine can do, asked once and without raising."""

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


@lru_cache(maxsize=1)
def load() -> tuple[ModuleType | None, str]:
    """(module, "") or (None, why the compiled module is not there)."""
    try:
        from seed_fast import _C
    except ImportError as error:
        return None, f"the compiled module seed_fast._C is not there ({error})"
    return _C, ""


def module() -> Any:
    """The compiled module; for code that runs only where `cpu_unavailable()` or `cuda_unavailable()` is ""."""
    return load()[0]


def cpu_unavailable() -> str:
    """Why the C++ CPU kernels cannot run on this machine, or ""."""
    return load()[1]


@lru_cache(maxsize=1)
def cuda_unavailable() -> str:
    """Why the CUDA kernels of the compiled module cannot run on this machine, or ""."""
    if load()[0] is None:
        return load()[1]
    available, reason = module().cuda_available()
    if not available:
        return str(reason)
    return "" if torch.cuda.is_available() else "this torch sees no CUDA device"


def triton_unavailable() -> str:
    """Why Triton kernels cannot run on this machine, or "". The interpreter counts: it runs them on CPU tensors."""
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
    """Whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "on")


def triton_device_objections(tensor: Tensor) -> list[str]:
    """Why a Triton kernel cannot take a tensor where it is. The interpreter takes CPU tensors, but only on request."""
    if tensor.is_cuda or (triton_interprets() and _dispatch.forced() == "triton"):
        return []
    return [f"the tensor is on {tensor.device}"]


def xformers_unavailable() -> str:
    """Why xFormers cannot run on this machine, or ""."""
    try:
        from xformers.ops import memory_efficient_attention  # noqa: F401
    except ImportError as error:
        return f"xformers is not installed ({error}): pip install 'seed-fast[xformers]'; for a V100: xformers==0.0.30"
    return "" if torch.cuda.is_available() else "this torch sees no CUDA device"


def threads() -> int:
    """Threads for one call of a CPU kernel: what torch would use."""
    return torch.get_num_threads()


def isa() -> str:
    """Highest instruction set the CPU kernels may use, or "" for what the CPU has."""
    return _env.get("SEED_FAST_CPU_ISA")


def stream(tensor: Tensor) -> int:
    """The current CUDA stream of the tensor's device, as the integer that launchers take."""
    return torch.cuda.current_stream(tensor.device).cuda_stream
