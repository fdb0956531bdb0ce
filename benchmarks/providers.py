"""The parts of a benchmark: cases, the providers that compete on them, and the bars that they have to reach."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from seed_fast.ops import _native

Inputs = dict[str, Tensor]
Call = Callable[[], Any]

# Distributions whose versions a results file records. None of them is needed to run a benchmark.
PEERS = ("faiss-cpu", "vector-quantize-pytorch", "flash-kmeans", "xformers", "liger-kernel", "transformers", "peft")
# Instruction set of the C++ kernels -> the CPU feature that it needs; the highest first.
INSTRUCTION_SETS = {"avx512bf16": "avx512_bf16", "avx512": "avx512", "avx2": "avx2", "scalar": ""}
MemoryMethod = Literal["call", "call here", "process"]  # benchmarks/memory.py describes them
_compiled: dict[Any, Callable[..., Any]] = {}


class Unavailable(Exception):
    """The provider cannot run here; the text is the status that its row shows, such as "not installed"."""


@dataclass(frozen=True)
class Case:
    """One shape of an op.

    Args:
        name: unique within the op; part of what identifies a row.
        shape: the sizes, by name.
        dtype: element type of the inputs.
        quick: whether a quick run includes it.
        devices: device types on which it is run.
        options: further settings of the inputs, such as {"causal": True}.
        full: whether only a full run includes it.
        rounds: for calls that take seconds: the number of rounds at least, each of one call, with no call before them
            that finds out how long one takes. Default: `timing.MINIMUM_ROUNDS`.
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
        """`dtype` as a torch.dtype."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


@dataclass(frozen=True)
class Provider:
    """One implementation of an op.

    Args:
        name: its name in tables and figures.
        prepare: takes the inputs and returns the call to time. What a user does once (packing, building an index,
            compiling) belongs in here; what a user does per call belongs in the call. Raises `Unavailable`. A call may
            have a method `seconds(repeats)` that times itself (one that runs in another process does), and `close()`.
        ours: whether seed_fast is judged by it.
        devices: device types it runs on.
        package: the distribution that it needs, or "".
        environment: environment variables that are set while it is prepared and called.
        unsuited: takes a case; returns why the provider is left out there (too much memory, say) or "".
        roundoff: unit roundoff of its arithmetic, where that is coarser than the dtype of the inputs.
        dtype: dtype of its matrix products, where that is not the case's; its rate is compared with their ceiling.
        compile_limit: seconds that it may take to compile, until the end of its first call. If it takes longer, its
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
        """Prepare the call to time, unless it is plain without trying that this provider cannot run here.

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
        slow: its peers; the fastest of those that ran counts.
        target: the ratio to reach.
        metric: "wall", time with launches; "device", time of a replayed CUDA graph; "memory", extra memory of a call;
            or "gemm", which has no peers: the share of the GEMM ceiling that `fast` reaches.
        device: device type that the claim is about.
        threads: CPU threads that the claim is about.
    """

    name: str
    case: str
    fast: str
    slow: tuple[str, ...]
    target: float
    metric: str = "wall"
    device: str = "cpu"
    threads: int = 2


_Named = TypeVar("_Named", Case, Provider)


@dataclass(frozen=True)
class Benchmark:
    """One op, or one part of the whole, with all that is needed to measure it.

    Args:
        op: its name; that of an op is the stem of the op's files.
        cases: the shapes.
        providers: the implementations that compete.
        baseline: name of the provider that every speed is a ratio to: the formula that a user has without seed_fast.
        bars: the claims.
        inputs: (case, device, seed) -> the tensors.
        truth: (inputs, case) -> the float64 result, in the form that `check` takes.
        check: (case, provider, output, inputs, truth) -> (why the output is wrong or "", a remark or "").
        flops: floating-point operations that the definition needs (multiply and add are two).
        bytes: bytes of inputs and outputs, each moved once.
        memory_cases: names of the cases at which peak memory is measured, one per device type.
        memory: the way in which it is measured; benchmarks/memory.py describes each.
        release_shared: drops what the providers of a case share, such as a model, so that the memory of a process is
            that of one provider.
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
    memory: MemoryMethod = "call"
    release_shared: Callable[[], None] = lambda: None

    def case(self, name: str) -> Case:
        """The case of that name.

        Raises:
            ValueError: there is none.
        """
        return self._named("case", self.cases, name)

    def provider(self, name: str) -> Provider:
        """The provider of that name.

        Raises:
            ValueError: there is none.
        """
        return self._named("provider", self.providers, name)

    def _named(self, kind: str, members: tuple[_Named, ...], name: str) -> _Named:
        for member in members:
            if member.name == name:
                return member
        names = ", ".join(member.name for member in members)
        raise ValueError(f"benchmark {self.op}: {kind} must be one of {names}, got {name!r}")


def close(call: Call | None) -> None:
    """Release what a call holds (a process, a folder), if it has a method `close`."""
    if call is not None and hasattr(call, "close"):
        call.close()


def needs_cpu_feature(feature: str) -> None:
    """Check that the C++ kernels are there and the CPU has `feature`; "" checks for the kernels alone.

    Raises:
        Unavailable: one of both is missing.
    """
    if _native.cpu_unavailable():
        raise Unavailable(_native.cpu_unavailable())
    if feature and feature not in _native.module().cpu_features():
        raise Unavailable(f"this CPU has no {feature}")


def each_instruction_set(prepare: Callable[[Inputs, Case], Call]) -> tuple[Provider, ...]:
    """One provider per instruction set: the C++ CPU kernel held to it."""

    def hidden(name: str) -> str:
        # An instruction set that the whole run is held below is not measured by a provider either.
        limit, names = os.environ.get("SEED_FAST_CPU_ISA", ""), list(INSTRUCTION_SETS)
        higher = limit in names and names.index(name) < names.index(limit)
        return f"hidden from this run by SEED_FAST_CPU_ISA={limit}" if higher else ""

    def held(name: str, feature: str) -> Provider:
        def start(inputs: Inputs, case: Case) -> Call:
            needs_cpu_feature(feature)
            return prepare(inputs, case)

        settings = {"SEED_FAST_CPU_ISA": name, "SEED_FAST_BACKEND": "cpu"}
        return Provider(
            f"seed_fast, {name}",
            start,
            ours=True,
            devices=("cpu",),
            environment=settings,
            unsuited=lambda case: hidden(name),
        )

    return tuple(held(name, feature) for name, feature in INSTRUCTION_SETS.items())


def each_gpu_backend(prepare: Callable[[Inputs, Case], Call]) -> tuple[Provider, ...]:
    """One provider for the CUDA kernel and one for the Triton kernel, whichever of them is the default."""

    def forced(name: str, unavailable: Callable[[], str]) -> Provider:
        def start(inputs: Inputs, case: Case) -> Call:
            if reason := unavailable():
                raise Unavailable(reason)
            return prepare(inputs, case)

        settings = {"SEED_FAST_BACKEND": name}
        return Provider(f"seed_fast, {name}", start, ours=True, devices=("cuda",), environment=settings)

    backends: dict[str, Callable[[], str]] = {"cuda": _native.cuda_unavailable, "triton": _native.triton_unavailable}
    return tuple(forced(name, unavailable) for name, unavailable in backends.items())


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside the block, and restore them after it."""
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
    """Version of a distribution, or None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def compile_once(function: Callable[..., Any], *like: Tensor) -> Callable[..., Any]:
    """Compile `function` by torch.compile, once for all tensors like these within a case.

    Args:
        function: what to compile; it must have no graph break.
        like: tensors of the shapes, strides, dtypes and devices that it will get.

    Returns:
        The compiled function, the same one until `forget_compiled`.
    """
    kind = (function, tuple((x.shape, x.stride(), x.dtype, x.device) for x in like))
    if kind not in _compiled:
        _compiled[kind] = torch.compile(function, dynamic=False, fullgraph=True)
    return _compiled[kind]


def forget_compiled() -> None:
    """Drop what torch.compile has compiled, before a case begins.

    Otherwise torch's limit on recompilations of one function would end its compilation after a few cases.
    """
    _compiled.clear()
    torch._dynamo.reset()
