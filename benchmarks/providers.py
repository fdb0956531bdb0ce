"""What a benchmark is made of: cases, the providers that compete on them, and the bars that they have to reach."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from seed_fast.ops import _native

Inputs = dict[str, Tensor]
Call = Callable[[], Any]

# Distributions whose versions a result records. None of them is needed to run a benchmark.
PEERS = ("faiss-cpu", "vector-quantize-pytorch", "flash-kmeans", "xformers", "liger-kernel", "transformers", "peft")
# Instruction set of the C++ kernels -> the CPU feature that it needs.
INSTRUCTION_SETS = {"avx512bf16": "avx512_bf16", "avx512": "avx512", "avx2": "avx2", "scalar": ""}
_compiled: dict[Any, Callable[..., Any]] = {}


class Unavailable(Exception):
    """Why a provider cannot run here. The text is what its row shows, such as "not installed"."""


@dataclass(frozen=True)
class Case:
    """One shape of an op.

    Args:
        name: unique within the op; part of what identifies a row.
        shape: the sizes, by name.
        dtype: element type of the inputs.
        quick: whether a quick run includes it.
        devices: device types on which it is run.
        options: what else the inputs depend on, such as {"causal": True}.
        full: whether only a full run includes it.
        rounds: fewest rounds, where a call takes seconds, without a call before them that says how long it takes;
            default: `timing.MINIMUM_ROUNDS`.
    """

    name: str
    shape: Mapping[str, int]
    dtype: str = "float32"
    quick: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    options: Mapping[str, Any] = field(default_factory=dict)
    full: bool = False
    rounds: int | None = None

    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch names it."""
        return getattr(torch, self.dtype)


@dataclass(frozen=True)
class Provider:
    """One implementation of an op.

    Args:
        name: what the tables call it.
        prepare: takes the inputs and returns the call to time. What a user does once (packing, building an index,
            compiling) belongs in here; what a user does per call belongs in the call. Raises `Unavailable`. A call may
            have a method `seconds(repeats)` that times itself (one that runs in another process does), and `close()`.
        ours: whether seed_fast is to be judged by it.
        devices: device types it runs on.
        package: the distribution that it needs, or "".
        environment: variables set while it is prepared and called.
        unsuited: takes a case, and says why it is left out there (too much memory, say) or "".
        roundoff: unit roundoff of its arithmetic, where it is coarser than the dtype of the inputs.
        dtype: type of its matrix products, whose ceiling its rate is a share of, where that is not the case's.
        compile_limit: seconds that it may take to compile, until the end of its first call. Where it takes longer, its
            row says so, and it isn't tried again in this run.
    """

    name: str
    prepare: Callable[[Inputs, Case], Call]
    ours: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    package: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    unsuited: Callable[[Case], str] = lambda case: ""
    roundoff: float | None = None
    dtype: str = ""
    compile_limit: float | None = None

    def start(self, inputs: Inputs, case: Case, device: str) -> Call:
        """`prepare`, after the reasons that need no try.

        Raises:
            Unavailable: it cannot run on this device or machine.
        """
        if self.package and version(self.package) is None:
            raise Unavailable("not installed")
        if device not in self.devices:
            raise Unavailable(f"runs on {' and '.join(self.devices)} only")
        if reason := self.unsuited(case):
            raise Unavailable(reason)
        with environment(self.environment):
            return self.prepare(inputs, case)


@dataclass(frozen=True)
class Bar:
    """A claim about one case: `fast` takes at most 1/target of the time of every provider in `slow`.

    Args:
        name: the claim in words.
        case: name of the case.
        fast: the provider that is judged.
        slow: the peers; the fastest of those that ran counts.
        target: the ratio to reach.
        metric: "wall" (with launches) or "device" (a replayed CUDA graph); "memory": the ratio of the extra memory of
            one call; "gemm", which has no peers: the share of the GEMM ceiling that `fast` reaches.
        device: device type that it speaks of.
        threads: CPU threads that it speaks of.
    """

    name: str
    case: str
    fast: str
    slow: tuple[str, ...]
    target: float
    metric: str = "wall"
    device: str = "cpu"
    threads: int = 2


@dataclass(frozen=True)
class Benchmark:
    """One op with all that is needed to measure it.

    Args:
        op: the op's name, the stem of its files.
        cases: the shapes.
        providers: who competes.
        baseline: the provider that every speed is a ratio to: the formula that a user has without seed_fast.
        bars: the claims.
        inputs: (case, device, seed) -> the tensors.
        truth: (inputs, case) -> the float64 result.
        check: (case, provider, output, inputs, truth) -> (why the output is wrong or "", a remark or "").
        flops: floating-point operations that the definition needs (multiply and add are two).
        bytes: bytes of inputs and outputs, each moved once.
        memory_cases: the cases at which peak memory is measured; the first that a device has.
        memory_here: measure it in this process on a CPU, because to make the model again would take minutes.
    """

    op: str
    cases: tuple[Case, ...]
    providers: tuple[Provider, ...]
    baseline: str
    bars: tuple[Bar, ...]
    inputs: Callable[[Case, str, int], Inputs]
    truth: Callable[[Inputs, Case], Any]
    check: Callable[[Case, Provider, Any, Inputs, Any], tuple[str, str]]
    flops: Callable[[Case], float]
    bytes: Callable[[Case], float]
    memory_cases: tuple[str, ...]
    memory_here: bool = False

    def case(self, name: str) -> Case:
        """The case of that name."""
        return _named("case", self.cases, name, self.op)

    def provider(self, name: str) -> Provider:
        """The provider of that name."""
        return _named("provider", self.providers, name, self.op)


def _named(kind: str, things: tuple[Any, ...], name: str, op: str) -> Any:
    for thing in things:
        if thing.name == name:
            return thing
    raise ValueError(f"benchmark {op}: {kind} must be one of {', '.join(t.name for t in things)}, got {name!r}")


def needs_cpu_feature(feature: str) -> None:
    """Raises `Unavailable` where the C++ kernels are not there or the CPU lacks `feature`."""
    if _native.cpu_unavailable():
        raise Unavailable(_native.cpu_unavailable())
    if feature and feature not in _native.module().cpu_features():
        raise Unavailable(f"this CPU has no {feature}")


def each_instruction_set(prepare: Callable[[Inputs, Case], Call]) -> tuple[Provider, ...]:
    """The C++ CPU kernel held to each instruction set."""

    def held(name: str, feature: str) -> Provider:
        def start(inputs: Inputs, case: Case) -> Call:
            needs_cpu_feature(feature)
            return prepare(inputs, case)

        settings = {"SEED_FAST_CPU_ISA": name, "SEED_FAST_BACKEND": "cpu"}
        return Provider(f"seed_fast, {name}", start, ours=True, devices=("cpu",), environment=settings)

    return tuple(held(name, feature) for name, feature in INSTRUCTION_SETS.items())


def each_gpu_backend(prepare: Callable[[Inputs, Case], Call]) -> tuple[Provider, ...]:
    """The CUDA kernel and the Triton kernel, whichever of them is the default."""

    def forced(name: str, unavailable: Callable[[], str]) -> Provider:
        def start(inputs: Inputs, case: Case) -> Call:
            if reason := unavailable():
                raise Unavailable(reason)
            return prepare(inputs, case)

        settings = {"SEED_FAST_BACKEND": name}
        return Provider(f"seed_fast, {name}", start, ours=True, devices=("cuda",), environment=settings)

    backends = {"cuda": _native.cuda_unavailable, "triton": _native.triton_unavailable}
    return tuple(forced(name, unavailable) for name, unavailable in backends.items())


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def version(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def compile_once(function: Callable[..., Any], *like: Tensor) -> Callable[..., Any]:
    """`torch.compile` of `function`, the same one for all tensors like these within a case."""
    kind = (function, tuple((x.shape, x.stride(), x.dtype, x.device) for x in like))
    if kind not in _compiled:
        _compiled[kind] = torch.compile(function, dynamic=False, fullgraph=True)
    return _compiled[kind]


def forget_compiled() -> None:
    """Start a case: else torch's limit on recompilations of one function ends its compilation after a few cases."""
    _compiled.clear()
    torch._dynamo.reset()
