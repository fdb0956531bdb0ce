"""The benchmark of attention, forward and backward, on the four shapes of the model: SDPA, FlexAttention, xFormers.

q, k and v are as a model has them: strided views of one fused projection. SDPA also gets the layout that suits it
best.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.providers import (
    Bar,
    Benchmark,
    Call,
    Case,
    Inputs,
    Provider,
    Unavailable,
    compile_once,
    each_gpu_backend,
    each_instruction_set,
)
from seed_fast.ops import attention

SDPA, SDPA_BEST, PLAIN, COMPILED = "SDPA", "SDPA, heads first and contiguous", "plain torch", "plain, torch.compile"
FLEX, XFORMERS = "FlexAttention", "xFormers"
SDPA_AVX2, SDPA_BEST_AVX2 = f"{SDPA}, AVX2", f"{SDPA_BEST}, AVX2"
# Heads, queries, keys, head width.
SHAPES = {
    "causal 32x32": (12, 32, 32, 64),
    "cross 32x257": (12, 32, 257, 64),
    "bidirectional 32x32": (12, 32, 32, 64),
    "ViT 257x257": (16, 257, 257, 88),
}
# Largest error allowed, as a multiple of plain torch's in the same dtype: ours forward, ours backward, a peer's.
BUDGET, GRADIENT_BUDGET, PEER_BUDGET = 2.0, 3.0, 6.0


def split(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, Lq, H, Dh], k and v [B, Lk, H, Dh], as views of the fused projections."""
    if "qkv" in inputs:
        q, k, v = inputs["qkv"].unbind(2)
    else:
        q, (k, v) = inputs["q"], inputs["kv"].unbind(2)
    return q, k, v


def plain(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attention as written in a textbook, every step in the dtype of the inputs."""
    scores_BHQK = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    if causal:
        hidden = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).triu(1)
        scores_BHQK = scores_BHQK.masked_fill(hidden, -math.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores_BHQK.softmax(-1), v)


def _timed(forward: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: Inputs, case: Case) -> Call:
    """The call to time: forward alone, or forward and the gradients of all inputs; returns the list of both."""
    if not case.options.get("backward"):

        @torch.no_grad()
        def call() -> list[Tensor]:
            return [forward(*split(inputs))]

    else:

        def call() -> list[Tensor]:
            out = forward(*split(inputs))
            leaves = [x for x in inputs.values() if x.requires_grad]
            return [out.detach(), *torch.autograd.grad(out, leaves, inputs["weight"])]

    return call


def _plain(inputs: Inputs, case: Case) -> Call:
    return _timed(lambda q, k, v: plain(q, k, v, case.options["causal"]), inputs, case)


def _compiled(inputs: Inputs, case: Case) -> Call:
    run = compile_once(plain, *inputs.values())
    return _timed(lambda q, k, v: run(q, k, v, case.options["causal"]), inputs, case)


def _ours(inputs: Inputs, case: Case) -> Call:
    return _timed(lambda q, k, v: attention(q, k, v, causal=case.options["causal"]), inputs, case)


def _sdpa(inputs: Inputs, case: Case) -> Call:
    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v, is_causal=case.options["causal"]).transpose(1, 2)

    return _timed(forward, inputs, case)


def _sdpa_best(inputs: Inputs, case: Case) -> Call:
    q, k, v = (x.transpose(1, 2).contiguous() for x in split(inputs))

    @torch.no_grad()
    def call() -> list[Tensor]:
        return [functional.scaled_dot_product_attention(q, k, v, is_causal=case.options["causal"]).transpose(1, 2)]

    return call


def without_avx512(prepare: Callable[[Inputs, Case], Call]) -> Callable[[Inputs, Case], Call]:
    """`prepare` for a torch without AVX-512: on a processor that lacks it, or with it hidden from the whole process.

    Elsewhere what comes back raises `Unavailable`.
    """

    def start(inputs: Inputs, case: Case) -> Call:
        if torch.backends.cpu.get_cpu_capability() != "AVX2":
            hide = "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2"
            raise Unavailable(f"torch does not run on AVX2 here; {hide} hides AVX-512 from a process")
        return prepare(inputs, case)

    return start


def _xformers(inputs: Inputs, case: Case) -> Call:
    from xformers.ops import LowerTriangularMask, memory_efficient_attention

    bias = LowerTriangularMask() if case.options["causal"] else None
    return _timed(lambda q, k, v: memory_efficient_attention(q, k, v, attn_bias=bias), inputs, case)


def _flex(inputs: Inputs, case: Case) -> Call:
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    except ImportError as error:
        raise Unavailable(f"this torch has no FlexAttention ({error})") from error
    q, k, _ = split(inputs)
    mask = None
    if case.options["causal"]:
        sizes = (q.shape[1], k.shape[1])
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, *sizes, device=q.device)
    run = compile_once(flex_attention, *inputs.values())

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return run(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=mask).transpose(1, 2)

    return _timed(forward, inputs, case)


def _forward_only(case: Case) -> str:
    return "forward only" if case.options.get("backward") else ""


def _compiles(case: Case) -> str:
    """Why a provider that compiles for seconds is left out: on a CPU it runs only on cases that have bars."""
    on_bars = case.dtype == "float32" and not case.options.get("backward")
    return "" if on_bars or case.devices == ("cuda",) else "left out here: compiles for long"


def _compiles_forward_only(case: Case) -> str:
    return _forward_only(case) or _compiles(case)


def _inputs(case: Case, device: str, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    s = case.shape
    draw = lambda *size: torch.randn(*size, generator=generator).to(device, case.torch_dtype())  # noqa: E731
    if s["Lq"] == s["Lk"]:
        tensors = {"qkv": draw(s["B"], s["Lq"], 3, s["H"], s["Dh"])}
    else:
        tensors = {"q": draw(s["B"], s["Lq"], s["H"], s["Dh"]), "kv": draw(s["B"], s["Lk"], 2, s["H"], s["Dh"])}
    if case.options.get("backward"):
        tensors = {name: x.requires_grad_() for name, x in tensors.items()}
        tensors["weight"] = draw(s["B"], s["Lq"], s["H"], s["Dh"])
    return tensors


def _in_dtype(inputs: Inputs, case: Case, dtype: torch.dtype) -> list[Tensor]:
    cast = {name: x.detach().to(dtype).requires_grad_(x.requires_grad) for name, x in inputs.items()}
    return _plain(cast, case)()


def _truth(inputs: Inputs, case: Case) -> list[tuple[Tensor, float]]:
    """Per output: the float64 result, and the root-mean-square error of plain torch in the case's dtype."""
    true, rounded = _in_dtype(inputs, case, torch.float64), _in_dtype(inputs, case, case.torch_dtype())
    return [(x, _error(y, x)) for x, y in zip(true, rounded, strict=True)]


def _error(got: Tensor, true: Tensor) -> float:
    return float((got.double() - true).square().mean().sqrt())


def check(case: Case, provider: Provider, output: list[Tensor], inputs: Inputs, truth: list) -> tuple[str, str]:
    """Check that the error of every output is within its budget, a multiple of plain torch's in the same dtype."""
    for index, (got, (true, budget)) in enumerate(zip(output, truth, strict=True)):
        name = f"gradient {index}" if index else "output"
        if got.shape != true.shape:
            return f"{name} must be {list(true.shape)}, got {list(got.shape)}", ""
        allowed = (GRADIENT_BUDGET if index else BUDGET) if provider.ours else PEER_BUDGET
        times = _error(got, true) / budget
        if not times <= allowed:
            return f"the error of its {name} is {times:.3g} times plain torch's", ""
    return "", ""


def _cases() -> tuple[Case, ...]:
    def case(name: str, batch: int, dtype: str, devices: tuple[str, ...], backward: bool = False) -> Case:
        heads, queries, keys, width = SHAPES[name]
        shape = {"B": batch, "H": heads, "Lq": queries, "Lk": keys, "Dh": width}
        options = {"causal": name.startswith("causal"), "backward": backward}
        title = f"{name}, B={batch}" + (f", {dtype}" if dtype != "float32" else "") + (", backward" if backward else "")
        quick = (name, batch, dtype, backward) == ("causal 32x32", 8, "float32", False)
        return Case(title, shape, dtype, quick, devices, options)

    return (
        *(case(name, 8, "float32", ("cpu",)) for name in SHAPES),
        *(case(name, 8, "bfloat16", ("cpu",)) for name in SHAPES),
        *(case(name, 8, "float32", ("cpu",), backward=True) for name in SHAPES),
        *(case(name, batch, "float16", ("cuda",)) for name in SHAPES for batch in (1, 8, 64)),
        *(case(name, 8, "float16", ("cuda",), backward=True) for name in SHAPES),
    )


def _bars() -> tuple[Bar, ...]:
    sdpa, gpu_peers = (SDPA, SDPA_BEST), (SDPA, SDPA_BEST, XFORMERS, FLEX)
    ahead = {"causal 32x32": 1.5, "cross 32x257": 1.25}
    ahead_avx2 = {"causal 32x32": 1.5, "cross 32x257": 1.2, "bidirectional 32x32": 1.2, "ViT 257x257": 1.0}
    cpu = [
        Bar(f"{ahead[name]}x SDPA" if name in ahead else "never slower than SDPA", f"{name}, B=8", "seed_fast", sdpa,
            ahead.get(name, 1))
        for name in SHAPES
    ]  # fmt: skip
    cpu += [
        Bar(f"without AVX-512: {target}x SDPA on AVX2", f"{name}, B=8", "seed_fast, avx2",
            (SDPA_AVX2, SDPA_BEST_AVX2), target)
        for name, target in ahead_avx2.items()
    ]  # fmt: skip
    gpu = [
        Bar("1.3x the best peer" if "32x" in name else "never slower than the best peer", f"{name}, B={batch}, float16",
            "seed_fast", gpu_peers, 1.3 if "32x" in name else 1, "device", "cuda")
        for name in SHAPES for batch in (1, 8, 64)
    ]  # fmt: skip
    return (*cpu, *gpu)


def _flops(case: Case) -> float:
    s = case.shape
    pairs = s["Lq"] * (s["Lk"] + 1) / 2 if case.options["causal"] else s["Lq"] * s["Lk"]
    matmuls = 7 if case.options.get("backward") else 2
    return 2 * matmuls * s["B"] * s["H"] * pairs * s["Dh"]


def _bytes(case: Case) -> float:
    s = case.shape
    elements = s["B"] * s["H"] * s["Dh"] * 2 * (s["Lq"] + s["Lk"])
    return elements * case.torch_dtype().itemsize * (2 if case.options.get("backward") else 1)


BENCHMARK = Benchmark(
    op="attention",
    cases=_cases(),
    providers=(
        Provider("seed_fast", _ours, ours=True),
        *each_instruction_set(_ours),
        *each_gpu_backend(_ours),
        Provider(SDPA, _sdpa),
        Provider(SDPA_BEST, _sdpa_best, unsuited=_forward_only),
        Provider(SDPA_AVX2, without_avx512(_sdpa), devices=("cpu",)),
        Provider(SDPA_BEST_AVX2, without_avx512(_sdpa_best), devices=("cpu",), unsuited=_forward_only),
        Provider(PLAIN, _plain),
        Provider(COMPILED, _compiled, unsuited=_compiles),
        Provider(FLEX, _flex, unsuited=_compiles_forward_only),
        Provider(XFORMERS, _xformers, devices=("cuda",), package="xformers"),
    ),
    baseline=SDPA,
    bars=_bars(),
    inputs=_inputs,
    truth=_truth,
    check=check,
    flops=_flops,
    bytes=_bytes,
    memory_cases=("ViT 257x257, B=8", "ViT 257x257, B=8, float16"),
)
