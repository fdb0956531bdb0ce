"""Every environment variable that seed_fast reads: its name, its default and what it does."""

from __future__ import annotations

import os
from typing import NamedTuple


class Variable(NamedTuple):
    """One environment variable."""

    name: str
    default: str
    meaning: str


VARIABLES = (
    Variable(
        "SEED_FAST_BACKEND",
        "",
        "run every op on this backend (reference, sdpa, xformers, cpu, cuda, triton); raise where it can't",
    ),
    Variable(
        "SEED_FAST_CPU_ISA",
        "",
        "highest instruction set of the C++ kernels (scalar, avx2, avx512, avx512bf16)",
    ),
    Variable("SEED_FAST_CUDA_ARCH", "", "70: run the compute_70 image of the CUDA kernels on a newer GPU, for tests"),
    Variable(
        "SEED_FAST_FUSED_PASSES",
        "auto",
        "sums with norms and biases with GELU in the plan as ops of the package: auto (on a GPU), 1 (everywhere), 0",
    ),
    Variable(
        "SEED_FAST_CACHE",
        "~/.cache/seed_fast",
        "folder for what can be made again, such as indexes of training shards, and what was measured on this machine",
    ),
    Variable(
        "SEED_FAST_PRODUCTS",
        "",
        "library of matrix products on a CPU: mkl (torch's own), onednn, onednn+gelu, onednn-blocked, "
        "onednn-blocked+gelu, float32 (compute half precision in it), measure (again); default: by measurement",
    ),
    Variable(
        "SEED_FAST_NATIVE",
        "auto",
        "build time: auto (compile, or install pure Python and say why), 1 (fail), 0 (never)",
    ),
    Variable("SEED_FAST_CUDA", "auto", "build time: auto (embed CUDA if its packages are there), 1 (fail), 0 (never)"),
    Variable(
        "SEED_FAST_FATBIN",
        "",
        "build time: device code compiled elsewhere (`make fatbin`), embedded instead of compiling it",
    ),
    Variable(
        "SEED_FAST_ZIG", "", "build time: 1 compiles with the package ziglang for manylinux_2_28, as release wheels do"
    ),
)
_BY_NAME = {variable.name: variable for variable in VARIABLES}


def get(name: str) -> str:
    """Value of a `SEED_FAST_*` variable, or its default. Read at each call, so tests may change it.

    Raises:
        KeyError: `name` is not listed in `VARIABLES`.
    """
    return os.environ.get(name, _BY_NAME[name].default)
