"""What the tests of all ops share: the table of ops with example inputs, and how kernels are compiled and run.

`test_contract.py` runs over the table; the other files of this folder hold what one op alone promises.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seed_fast.ops import (
    _native,
    add_layer_norm,
    attention,
    backend,
    bias_gelu,
    nearest_code,
    pack_codebook,
    vector_quantize,
)

ROOT = Path(__file__).parents[2]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ISAS = ("scalar", "avx2", "avx512")
ARCHITECTURES = {"sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"}
needs_native = pytest.mark.skipif(bool(_native.cpu_unavailable()), reason=_native.cpu_unavailable() or "native")
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.cuda_nvrtc") is None,
    reason="the CUDA compiler packages are not installed",
)
_reason = _native.cuda_unavailable()
gpu_marks = (pytest.mark.gpu, pytest.mark.skipif(bool(_reason), reason=_reason or "has a GPU"))


def on_gpu(test: Any) -> Any:
    """Mark a test that needs a GPU and our kernels for it."""
    return gpu_marks[0](gpu_marks[1](test))


def backends_of_a_cpu(*names: str, isas: tuple[str, ...] = ISAS) -> Any:
    """A fixture: runs a test on backends by name, and on the C++ kernel of each instruction set (or the best here)."""

    @pytest.fixture(params=[*names, *(pytest.param(isa, marks=needs_native) for isa in isas)])
    def everywhere(request, monkeypatch):
        if request.param in isas:
            monkeypatch.setenv("SEED_FAST_CPU_ISA", request.param)
        with backend("cpu" if request.param in isas else request.param):
            yield request.param

    return everywhere


@functools.cache
def compiled_kernels(pattern: str) -> dict[str, dict[str, dict[str, int]]]:
    """{kernel: {architecture: what ptxas reports}} of csrc/cuda/`pattern`, compiled for all their architectures."""
    driver, folder = ROOT / "cmake" / "compile_device_code.py", ROOT / "csrc" / "cuda"
    with tempfile.TemporaryDirectory() as out:
        folders = ["-I", folder, "-I", ROOT / "csrc" / "include"]
        command = [sys.executable, driver, "build", out, *sorted(folder.glob(pattern)), *folders]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        sources = json.loads((Path(out) / "device_code.json").read_text())["sources"]
    return {name: by_arch for source in sources.values() for name, by_arch in source["kernels"].items()}


TRITON = """
import math, torch
import torch.nn.functional as F
from seed_fast.ops import *
from seed_fast.testing import check_budget
device = "cuda" if {gpu} else "cpu"
generator = torch.Generator().manual_seed(0)
draw = lambda *shape: torch.randn(*shape, generator=generator)
fresh = torch.empty
def empty(*shape, **options):
    out = fresh(*shape, **options)
    return out.fill_(math.nan) if out.is_floating_point() else out  # shows what stays unwritten
torch.empty = empty
"""


def run_triton(script: str) -> str:
    """Run a script behind the lines of `TRITON`: by Triton's interpreter, or on the GPU. Returns what it prints."""
    pytest.importorskip("triton")
    gpu = torch.cuda.is_available()
    environment = dict(os.environ) if gpu else {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", TRITON.format(gpu=gpu) + script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-3000:]
    return done.stdout


def indented(script: str) -> str:
    """A script as the body of `with backend("triton"):`."""
    return "with backend('triton'):\n    " + script.strip().replace("\n", "\n    ")


def normal(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal values, the same on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(device, dtype)


Inputs = Callable[[str], list[Any]]  # the tensors of a call, on a device
Wrong = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]  # arguments, options, error, message


@dataclass(frozen=True)
class Op:
    """An op, and examples of its inputs.

    Args:
        call: the public function, of tensors and options.
        options: sets of options, by name; every one is compiled, differentiated and captured.
        small: inputs of a few rows.
        many: inputs that several threads share.
        tiny: subnormal inputs, and options; None where a kernel has no promise for them.
        pack: all inputs but the first, in the form that a kernel wants.
        learned: how many of the inputs, from the first, can get a gradient.
        registered: tensors to the arguments of the registered op.
        opchecks: what is given to torch.library.opcheck on a device: pairs of overload name and arguments.
        captured: inputs and options of a CUDA graph.
        isas: what its C++ kernel is compiled for.
        wrong: what is refused, and with which message.
        kernels: CUDA kernels, and the architectures that each is compiled for.
        unspilled: architectures whose code must keep all in registers.
        kernel_gradients: whether kernels compute the gradient, of the second input.
        triton: kernels in seed_fast.kernels.<op>: constants, and the types of other arguments ("T": the dtype).
    """

    call: Callable[..., Any]
    small: Inputs
    many: Inputs
    registered: Callable[..., tuple[Any, ...]]
    opchecks: Callable[[str], Iterator[tuple[str, tuple[Any, ...]]]]
    captured: tuple[Inputs, dict[str, Any]]
    wrong: list[Wrong]
    kernels: dict[str, set[str]]
    triton: dict[str, tuple[dict[str, Any], dict[str, str]]]
    options: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    tiny: tuple[Inputs, dict[str, Any]] | None = None
    pack: Callable[[list[Tensor]], list[Any]] | None = None
    learned: int = 0
    isas: tuple[str, ...] = ISAS
    unspilled: set[str] = field(default_factory=lambda: ARCHITECTURES)
    kernel_gradients: bool = False


def at(place: str) -> Any:
    """The context in which an op runs at a place: "reference", "cpu" (what is chosen there) or "cuda"."""
    return nullcontext() if place == "cpu" else backend(place)


# -- add_layer_norm ---------------------------------------------------------------------------------------------------


def _norm_inputs(n: int, d: int, device: str, magnitude: float = 1.0) -> list[Tensor]:
    x, delta = (normal(n, d, device=device, seed=seed) * magnitude for seed in (0, 1))
    weight, bias = (normal(d, device=device, seed=seed) * 0.1 for seed in (2, 3))
    return [x, delta, weight + 1, bias]


def _norm_opchecks(device: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    tensors = [t.requires_grad_() for t in _norm_inputs(5, 8, device)]
    x, delta, weight, _ = (t.detach() for t in tensors)
    for out_dtype in DTYPES:
        for post_norm in (False, True):
            yield "add_layer_norm", (*tensors, 1e-6, out_dtype, post_norm)
            for grad_stream in (torch.ones_like(x), *([torch.zeros(0, device=device)] if post_norm else [])):
                grads = grad_stream, torch.ones_like(x, dtype=out_dtype)
                yield "add_layer_norm_backward", (*grads, x, delta, weight, 1e-6, post_norm)


def _norm(x: Any, delta: Any, weight: Any, bias: Any, eps: Any = 1e-6, **options: Any) -> Any:
    return add_layer_norm(x, delta, weight, bias, eps, **options)


X, W = torch.zeros(3, 8), torch.ones(8)
KINDS = ("float32", "float16", "bfloat16")
POST_NORM = {"pre-norm": {"post_norm": False}, "post-norm": {"post_norm": True}}
HALF_OUT = {"out_dtype": torch.bfloat16}
ADD_LAYER_NORM = Op(
    call=_norm,
    options={name: {**HALF_OUT, **options} for name, options in POST_NORM.items()},
    small=lambda device: _norm_inputs(6, 24, device),
    many=lambda device: _norm_inputs(400, 130, device),
    tiny=(lambda device: _norm_inputs(3, 40, device, 1e-40), {"eps": 0.0}),
    learned=4,
    registered=lambda *tensors: (*tensors, 1e-6, torch.float32, False),
    opchecks=_norm_opchecks,
    captured=(lambda device: _norm_inputs(64, 1408, device), {"out_dtype": torch.float16}),
    wrong=[
        ((X.numpy(), X, W, W), {}, TypeError, "x must be a Tensor, got ndarray"),
        ((X, X.long(), W, W), {}, TypeError, "delta must be float32, float16, bfloat16 or float64, got torch.int64"),
        ((X, X[:2], W, W), {}, ValueError, r"delta must be \[3, 8\] like x, got \[2, 8\]"),
        ((X, X, W[:4], W), {}, ValueError, r"weight must be \[8\] to match x \[3, 8\], got \[4\]"),
        ((X, X, W, X), {}, ValueError, r"bias must be \[8\] to match x \[3, 8\], got \[3, 8\]"),
        ((X[:, :0], X[:, :0], W[:0], W[:0]), {}, ValueError, r"x must be \[..., D\] with D >= 1, got \[3, 0\]"),
        ((X[0, 0], X, W, W), {}, ValueError, r"x must be \[..., D\] with D >= 1, got \[\]"),
        ((X, X.to("meta"), W, W), {}, ValueError, "delta must be on cpu like x, got meta"),
        ((X, X, W, W, -0.1), {}, ValueError, "eps must be a finite number of at least 0, got -0.1"),
        ((X, X, W, W, math.nan), {}, ValueError, "eps must be a finite number of at least 0, got nan"),
        ((X, X, W, W), {"out_dtype": torch.int8}, TypeError, "out_dtype must be float32.*, got torch.int8"),
        ((X, X, W, W), {"post_norm": 1}, TypeError, "post_norm must be True or False, got int"),
    ],
    kernels={f"add_layer_norm_{kind}_kernel": ARCHITECTURES for kind in (*KINDS, *(f"wide_{k}" for k in KINDS), "any")},
    triton={
        f"add_layer_norm_fwd_kernel/{name}": (
            {"HAS_STREAM": True, "POST_NORM": options["post_norm"], "PADDED_D": 2048},
            dict.fromkeys(("x", "weight", "bias", "stream"), "*fp32") | {"eps": "fp32", "delta": "*T", "y": "*T"},
        )
        for name, options in POST_NORM.items()
    },
)

# -- attention --------------------------------------------------------------------------------------------------------


def _qkv(b: int, lq: int, lk: int, h: int, d: int, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    k, v = normal(b, lk, 2, h, d, device=device, dtype=dtype, seed=1).unbind(2)
    return [normal(b, lq, h, d, device=device, dtype=dtype), k, v]


def _attention_opchecks(device: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for dtype in (torch.float32, torch.float16) if device == "cuda" else (*DTYPES, torch.float64):
        for causal in (False, True):
            tensors = [t.clone() for t in _qkv(2, 5, 7, 3, 16, device, dtype)]
            yield "attention_backward", (tensors[0], *tensors, causal, 0.25)
            yield "attention", (*tensors, causal, 0.25)
            yield "attention", (*(t.clone().requires_grad_() for t in tensors), causal, 0.25)


q, k, v = _qkv(2, 5, 7, 3, 16, "cpu")
ATTENTION = Op(
    call=attention,
    options={"causal": {"causal": True}, "full": {"causal": False}},
    small=lambda device: _qkv(2, 8, 8, 2, 16, device),
    many=lambda device: _qkv(1, 100, 257, 3, 88, device),
    tiny=(lambda device: [t * 1e-40 for t in _qkv(1, 8, 9, 1, 16, device)], {}),
    learned=3,
    registered=lambda *tensors: (*tensors, False, 0.25),
    opchecks=_attention_opchecks,
    captured=(lambda device: _qkv(2, 32, 257, 4, 64, device, torch.float16), {}),
    isas=(*ISAS, "avx512bf16"),
    wrong=[
        ((q[0], k, v), {}, ValueError, r"q must be \[B, L, H, Dh\], got \[5, 3, 16\]"),
        ((q, k[:1], v[:1]), {}, ValueError, r"k must be \[2, Lk, 3, 16\] to match q \[2, 5, 3, 16\], got \[1, 7,"),
        ((q, k[:, :, :2], v), {}, ValueError, r"k must be .*got \[2, 7, 2, 16\]"),
        ((q, k[..., :8], v), {}, ValueError, r"k must be .*got \[2, 7, 3, 8\]"),
        ((q, k, v[:, 1:]), {}, ValueError, r"v must be \[2, 7, 3, 16\] like k, got \[2, 6, 3, 16\]"),
        ((q, k[:, :0], v[:, :0]), {}, ValueError, r"k must have at least one key .*got \[2, 0, 3, 16\]"),
        ((q, k.half(), v), {}, TypeError, "k must be torch.float32 like q, got torch.float16"),
        ((q.long(), k, v), {}, TypeError, "q must be float32, float16, bfloat16 or float64, got torch.int64"),
        ((q.numpy(), k, v), {}, TypeError, "q must be a Tensor, got ndarray"),
        ((q, k, v.to("meta")), {}, ValueError, "v must be on cpu like q, got meta"),
        ((q, k, v), {"causal": torch.ones(5, 7)}, TypeError, "causal must be True or False, got Tensor"),
        ((q, k, v), {"scale": math.nan}, ValueError, "scale must be a finite number, got nan"),
        ((q, k, v), {"scale": "1"}, ValueError, "scale must be a finite number, got '1'"),
    ],
    kernels={  # newer GPUs use torch's kernels; the PTX still runs there
        f"attention_fwd_{kind}_w{width}_kernel": {"sm_70", "sm_75"}
        for kinds, widths in (
            (("float32_rows32", "float32_rows96", "float32_unaligned", "float16_unaligned"), (32, 64, 96, 128)),
            (("sm70_keys32", "sm70_keys288", "sm70_many"), (32, 64, 88, 128)),
        )
        for kind in kinds
        for width in widths
    },
    unspilled={"sm_70"},
    triton={
        f"attention_fwd_kernel/{d}": (
            {"D": d, "PADDED_D": padded, "CAUSAL": True, "UPCAST": False, "BLOCK_Q": 32, "BLOCK_K": 64},
            {**dict.fromkeys(("q", "k", "v", "out"), "*T"), "scale": "fp32"},
        )
        for d, padded in ((64, 64), (88, 128))
    },
)

# -- bias_gelu --------------------------------------------------------------------------------------------------------


def _bias_inputs(n: int, d: int, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [normal(n, d, device=device, dtype=dtype), normal(d, device=device, dtype=dtype, seed=1)]


def _bias_opchecks(device: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    x, bias = (t.requires_grad_() for t in _bias_inputs(5, 8, device))
    yield "bias_gelu", (x, bias)
    x, bias = x.detach(), bias.detach()
    yield "bias_gelu_", (x.clone(), bias)
    yield "bias_gelu_backward", (torch.ones_like(x), x, bias)


BIAS_GELU = Op(
    call=bias_gelu,
    small=lambda device: _bias_inputs(6, 24, device),
    many=lambda device: _bias_inputs(400, 130, device),
    learned=2,
    registered=lambda *tensors: tensors,
    opchecks=_bias_opchecks,
    captured=(lambda device: _bias_inputs(64, 6144, device, torch.float16), {}),
    wrong=[
        ((X.numpy(), W), {}, TypeError, "x must be a Tensor, got ndarray"),
        ((X, W.int()), {}, TypeError, "bias must be float32, float16, bfloat16 or float64, got torch.int32"),
        ((X, W[:4]), {}, ValueError, r"bias must be \[8\] to match x \[3, 8\], got \[4\]"),
        ((X[:, :0], W[:0]), {}, ValueError, r"x must be \[..., D\] with D >= 1, got \[3, 0\]"),
        ((X, W.to("meta")), {}, ValueError, "bias must be on cpu like x, got meta"),
        *(
            ((x, W), {"inplace": True}, ValueError, f"inplace=True {message}")
            for x, message in (
                (X.clone().requires_grad_(), "must be called without a gradient"),
                (X.T.contiguous().T, "needs x with a contiguous last axis"),
                (torch.zeros(3, 2, 8).transpose(0, 1), "needs x that is rows"),
            )
        ),
    ],
    kernels={f"bias_gelu_{kind}_kernel": ARCHITECTURES for kind in (*KINDS, "any")},
    triton={"bias_gelu_fwd_kernel": ({"BLOCK_N": 4, "BLOCK_D": 1024}, dict.fromkeys(("x", "bias", "y"), "*T"))},
)

# -- nearest_code -----------------------------------------------------------------------------------------------------


def _pair(n: int, k: int, d: int, device: str, magnitude: float = 1.0) -> list[Tensor]:
    return [normal(rows, d, device=device, seed=seed) * magnitude for seed, rows in enumerate((n, k))]


def _nearest_opchecks(device: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for dtype in DTYPES if device == "cuda" else (*DTYPES, torch.float64):
        z, codebook = (t.to(dtype) for t in _pair(6, 20, 8, device))
        for packed in (None, pack_codebook(codebook).packed):
            for return_margin in (False, True):
                yield "nearest_code", (z, codebook, packed, return_margin)


z, codebook = _pair(6, 20, 8, "cpu")
PACK_KERNELS = ("pack_center", "pack_entries", "pack_screen")
FIND_KERNELS = ("finish", "fwd_rows", "finish_rows", "margin")
POINTERS = {"z": "*T", "codebook": "*T", "ids": "*i64", "doubtful": "*i8", "margin": "*fp32"}
NEAREST_CODE = Op(
    call=nearest_code,
    options={"ids": {}, "margin": {"return_margin": True}},
    small=lambda device: _pair(6, 20, 8, device),
    many=lambda device: _pair(700, 1000, 32, device),
    tiny=(lambda device: _pair(20, 50, 8, device, 1e-40), {}),
    registered=lambda z, codebook: (z, codebook, None, False),
    opchecks=_nearest_opchecks,
    captured=(lambda device: _pair(32, 8192, 32, device), {}),
    pack=lambda others: [pack_codebook(*others)],
    isas=(*ISAS, "avx512bf16"),
    wrong=[
        ((z, torch.randn(20, 9)), {}, ValueError, r"codebook must be \[K, 8\] to match z \[6, 8\], got \[20, 9\]"),
        ((z, torch.randn(20)), {}, ValueError, r"codebook must be \[K, D\] with K, D >= 1, got \[20\]"),
        ((z, torch.empty(0, 8)), {}, ValueError, r".*got \[0, 8\]"),
        ((z.long(), codebook), {}, TypeError, "z must be float32, float16, bfloat16 or float64, got torch.int64"),
        ((z, codebook.int()), {}, TypeError, "codebook must be float32.*got torch.int32"),
        ((z.numpy(), codebook), {}, TypeError, "z must be a Tensor, got ndarray"),
        ((z, [1.0]), {}, TypeError, "codebook must be a Tensor or a PackedCodebook, got list"),
        ((torch.tensor(1.0), codebook), {}, ValueError, ".*to match z"),
        ((z, codebook.to("meta")), {}, ValueError, "codebook must be on cpu like z, got meta"),
    ],
    kernels={
        **{f"{name}_kernel": ARCHITECTURES for name in (*PACK_KERNELS, *(f"nearest_code_{n}" for n in FIND_KERNELS))},
        "nearest_code_fwd_sm70_kernel": {"sm_70"},
        "nearest_code_fwd_sm75_kernel": ARCHITECTURES - {"sm_70"},
    },
    triton={
        "nearest_code_fwd_kernel": (
            {"D": 32, "ALL_DOUBTFUL": False, "PADDED_D": 32, "BLOCK_N": 64, "BLOCK_K": 64},
            POINTERS,
        ),
        "nearest_code_exact_kernel": ({"HAS_MARGIN": True, "BLOCK_K": 128}, POINTERS),
    },
)

# -- vector_quantize --------------------------------------------------------------------------------------------------


def _quantize_opchecks(device: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    z, codebook = _pair(12, 5, 3, device)
    yield "vector_quantize", (z.clone().requires_grad_(), codebook.clone().requires_grad_(), None)
    ids, one = nearest_code(z, codebook), torch.ones((), device=device)
    for needs in ((True, True), (False, True), (True, False)):
        yield "vector_quantize_backward", (z, codebook, ids, torch.ones_like(z), one, one, *needs)


VQ_TYPES = {
    **dict.fromkeys(("z", "codebook", "z_q", "grad_z_q", "grad_z", "grad_codebook"), "*T"),
    **dict.fromkeys(("ids", "order", "first"), "*i64"),
    **dict.fromkeys(("grad_commit", "grad_codebook_loss"), "*fp32"),
    "sums": "*fp64",
}
VECTOR_QUANTIZE = Op(
    call=vector_quantize,
    small=lambda device: _pair(6, 20, 8, device),
    many=lambda device: _pair(5000, 3, 16, device),
    learned=2,
    registered=lambda z, codebook: (z, codebook, None),
    opchecks=_quantize_opchecks,
    captured=(lambda device: _pair(64, 300, 32, device), {}),
    kernel_gradients=True,
    isas=(*ISAS, "avx512bf16"),
    wrong=[
        ((z, torch.zeros(20, 9)), {}, ValueError, r"codebook must be \[K, 8\] to match z \[6, 8\], got \[20, 9\]"),
    ],
    kernels={f"vector_quantize_{what}_kernel": ARCHITECTURES for what in ("fwd", "loss", "bwd_z", "bwd_codebook")},
    triton={
        f"vector_quantize_{what}_kernel": ({"D": 32, "PADDED_D": 32, "BLOCK_N": 32}, VQ_TYPES)
        for what in ("fwd", "bwd_z", "bwd_codebook")
    },
)

OPS = {
    "add_layer_norm": ADD_LAYER_NORM,
    "attention": ATTENTION,
    "bias_gelu": BIAS_GELU,
    "nearest_code": NEAREST_CODE,
    "vector_quantize": VECTOR_QUANTIZE,
}
