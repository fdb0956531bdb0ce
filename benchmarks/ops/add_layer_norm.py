"""The benchmark of add_layer_norm on the rows of the model: plain torch, its compiler, and a norm alone.

The residual stream is float32; the addend and the result that the next product reads have the case's dtype. The
provider "norm alone" does less work: it adds nothing, and writes the norm only, in float32.
"""

from __future__ import annotations

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
    compile_once,
    each_gpu_backend,
    each_instruction_set,
)
from seed_fast.ops import add_layer_norm

PLAIN, COMPILED, ALONE = "plain torch", "plain, torch.compile", "norm alone"
EPS = 1e-6
# Largest error allowed, as a multiple of plain torch's or of a unit in the last place of the largest element, whichever
# is larger: ours, a peer's.
BUDGET, PEER_BUDGET = 2.0, 6.0
# Rows of an image and their width.
ROWS = {"ViT": (257, 1408), "Q-Former": (32, 768)}


def plain(x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The computation without the op: a sum, a norm in float32, a cast. Returns (sum, norm)."""
    x = x + delta
    return x, functional.layer_norm(x, weight.shape, weight, bias, EPS).to(delta.dtype)


def _plain(inputs: Inputs, case: Case) -> Call:
    return torch.no_grad()(lambda: plain(**inputs))


def _compiled(inputs: Inputs, case: Case) -> Call:
    run = compile_once(plain, *inputs.values())
    return torch.no_grad()(lambda: run(**inputs))


def _ours(inputs: Inputs, case: Case) -> Call:
    x, delta, weight, bias = (inputs[name] for name in ("x", "delta", "weight", "bias"))
    return torch.no_grad()(lambda: add_layer_norm(x, delta, weight, bias, eps=EPS, out_dtype=delta.dtype))


def _alone(inputs: Inputs, case: Case) -> Call:
    x, weight, bias = (inputs[name] for name in ("x", "weight", "bias"))
    return torch.no_grad()(lambda: functional.layer_norm(x, weight.shape, weight, bias, EPS))


def _inputs(case: Case, device: str, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    n, d = case.shape["N"], case.shape["D"]
    draw = lambda *size: torch.randn(*size, generator=generator).to(device)  # noqa: E731
    return {
        "x": draw(n, d),
        "delta": draw(n, d).to(case.torch_dtype()),
        "weight": 1 + 0.1 * draw(d),
        "bias": 0.1 * draw(d),
    }


def _truth(inputs: Inputs, case: Case) -> list[tuple[Tensor, float]]:
    """Per result: the float64 one, and the largest error of plain torch."""
    rounded = plain(**inputs)
    total = rounded[0].double()
    norm = functional.layer_norm(total, inputs["weight"].shape, inputs["weight"].double(), inputs["bias"].double(), EPS)
    return [(true, float((y.double() - true).abs().max())) for true, y in zip((total, norm), rounded, strict=True)]


def check(
    case: Case, provider: Provider, output: tuple[Tensor, Tensor] | Tensor, inputs: Inputs, truth: list
) -> tuple[str, str]:
    """Check that the error of both results is within a multiple of plain torch's in the same dtypes."""
    if isinstance(output, Tensor):  # the norm of x alone, which is another quantity
        return "", ""
    for name, got, (true, theirs) in zip(("sum", "norm"), output, truth, strict=True):
        if got.shape != true.shape:
            return f"{name} must be {list(true.shape)}, got {list(got.shape)}", ""
        budget = max(theirs, float(torch.finfo(got.dtype).eps * true.abs().max()))
        times = float((got.double() - true).abs().max()) / budget
        if not times <= (BUDGET if provider.ours else PEER_BUDGET):
            return f"the error of its {name} is {times:.3g} times plain torch's", ""
    return "", ""


def _case(part: str, images: int, dtype: str, device: str) -> Case:
    rows, width = ROWS[part]
    name = f"{part}, B={images}" + (f", {dtype}" if dtype != "float32" else "")
    quick = (part, images, dtype) == ("Q-Former", 8, "float32")
    return Case(name, {"N": rows * images, "D": width}, dtype, quick, (device,))


def _bytes(case: Case) -> float:
    itemsize = case.torch_dtype().itemsize
    return case.shape["N"] * case.shape["D"] * (4 + itemsize + 4 + itemsize)  # x and delta in, x and norm out


BENCHMARK = Benchmark(
    op="add_layer_norm",
    cases=(
        *(_case(part, 8, dtype, "cpu") for part in ROWS for dtype in ("float32", "bfloat16")),
        *(_case(part, images, "float16", "cuda") for part in ROWS for images in (1, 8, 64)),
        _case("ViT", 64, "bfloat16", "cuda"),
        _case("ViT", 64, "float32", "cuda"),
    ),
    providers=(
        Provider("seed_fast", _ours, ours=True),
        *each_instruction_set(_ours),
        *each_gpu_backend(_ours),
        Provider(PLAIN, _plain),
        Provider(COMPILED, _compiled),
        Provider(ALONE, _alone),
    ),
    baseline=PLAIN,
    bars=(
        Bar("1.5x plain torch", "ViT, B=64, float16", "seed_fast", (PLAIN,), 1.5, "device", "cuda"),
        Bar("as fast as torch.compile", "ViT, B=64, float16", "seed_fast", (COMPILED,), 0.95, "device", "cuda"),
    ),
    inputs=_inputs,
    truth=_truth,
    check=check,
    flops=lambda case: 9 * case.shape["N"] * case.shape["D"],
    bytes=_bytes,
    memory_cases=(),
)
