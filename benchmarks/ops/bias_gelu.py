"""The benchmark of bias_gelu after a matrix product: plain torch, its compiler, and a product that adds the bias.

Cases with K include the product. The inference plan chooses between a product without a bias followed by bias_gelu, and
torch's product with a bias (in cublasLt's epilogue, on a GPU) followed by its GELU. Cases without K are the pass alone.
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
from seed_fast.ops import bias_gelu

PLAIN, COMPILED, ADDMM, GELU = "plain torch", "plain, torch.compile", "product with bias, then GELU", "GELU alone"
# Largest error allowed, as a multiple of plain torch's or of a unit in the last place of the largest element, whichever
# is larger: ours, a peer's.
BUDGET, PEER_BUDGET = 2.0, 6.0
# Rows of an image, and columns before and behind the product.
LAYERS = {"ViT": (257, 1408, 6144), "Q-Former": (32, 768, 3072)}


def plain(x: Tensor, bias: Tensor, weight: Tensor | None = None) -> Tensor:
    """A product without a bias, the sum with the bias, GELU; each is a pass of its own."""
    return functional.gelu((x if weight is None else functional.linear(x, weight)) + bias)


def ours(x: Tensor, bias: Tensor, weight: Tensor | None = None) -> Tensor:
    """A product without a bias, then bias and GELU in one pass that overwrites it."""
    return bias_gelu(x, bias) if weight is None else bias_gelu(functional.linear(x, weight), bias, inplace=True)


def _plain(inputs: Inputs, case: Case) -> Call:
    return torch.no_grad()(lambda: plain(**inputs))


def _compiled(inputs: Inputs, case: Case) -> Call:
    run = compile_once(plain, *inputs.values())
    return torch.no_grad()(lambda: run(**inputs))


def _ours(inputs: Inputs, case: Case) -> Call:
    return torch.no_grad()(lambda: ours(**inputs))


def _addmm(inputs: Inputs, case: Case) -> Call:
    x, bias, weight = (inputs[name] for name in ("x", "bias", "weight"))
    gelu_ = torch.ops.aten.gelu_
    return torch.no_grad()(lambda: gelu_(functional.linear(x, weight, bias)))


def _gelu(inputs: Inputs, case: Case) -> Call:
    return torch.no_grad()(lambda: functional.gelu(inputs["x"]))


def _inputs(case: Case, device: str, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    n, d, k = case.shape["N"], case.shape["D"], case.shape.get("K")
    draw = lambda *size: torch.randn(*size, generator=generator).to(device, case.torch_dtype())  # noqa: E731
    tensors = {"x": draw(n, k or d), "bias": draw(d)}
    return tensors | ({"weight": draw(d, k) * k**-0.5} if k else {})


def _truth(inputs: Inputs, case: Case) -> tuple[Tensor, float]:
    """The float64 result, and the largest error of plain torch."""
    true = plain(**{name: tensor.double() for name, tensor in inputs.items()})
    return true, float((plain(**inputs).double() - true).abs().max())


def check(
    case: Case, provider: Provider, output: Tensor, inputs: Inputs, truth: tuple[Tensor, float]
) -> tuple[str, str]:
    """Check that the error is within a multiple of plain torch's in the same dtype."""
    true, theirs = truth
    if output.shape != true.shape:
        return f"the result must be {list(true.shape)}, got {list(output.shape)}", ""
    if provider.name == GELU:  # without the bias, which is another quantity
        return "", ""
    times = float((output.double() - true).abs().max()) / max(
        theirs, float(torch.finfo(output.dtype).eps * true.abs().max())
    )
    if not times <= (BUDGET if provider.ours else PEER_BUDGET):
        return f"its error is {times:.3g} times plain torch's", ""
    return "", ""


def _needs_product(case: Case) -> str:
    return "" if "K" in case.shape else "for cases with a product only"


def _needs_no_product(case: Case) -> str:
    return "for cases without a product only" if "K" in case.shape else ""


def _case(part: str, images: int, dtype: str, device: str, product: bool = False) -> Case:
    rows, summed, width = LAYERS[part]
    name = f"{part}{' with its product' if product else ''}, B={images}" + (f", {dtype}" if dtype != "float32" else "")
    shape = {"N": rows * images, "D": width} | ({"K": summed} if product else {})
    return Case(name, shape, dtype, (part, images, dtype) == ("Q-Former", 8, "float32"), (device,))


def _flops(case: Case) -> float:
    return case.shape["N"] * case.shape["D"] * (2 * case.shape.get("K", 0) + 25)


def _bytes(case: Case) -> float:
    n, d, k = case.shape["N"], case.shape["D"], case.shape.get("K")
    return (n * k + k * d + n * d if k else 2 * n * d) * case.torch_dtype().itemsize


BENCHMARK = Benchmark(
    op="bias_gelu",
    cases=(
        *(_case(part, 8, dtype, "cpu") for part in LAYERS for dtype in ("float32", "bfloat16")),
        *(_case(part, images, "float16", "cuda") for part in LAYERS for images in (1, 8, 64)),
        *(_case("ViT", images, "float16", "cuda", product=True) for images in (1, 8, 64)),
        _case("ViT", 64, "bfloat16", "cuda", product=True),
        _case("ViT", 64, "float32", "cuda", product=True),
    ),
    providers=(
        Provider("seed_fast", _ours, ours=True),
        *each_instruction_set(_ours),
        *each_gpu_backend(_ours),
        Provider(PLAIN, _plain),
        Provider(COMPILED, _compiled),
        Provider(ADDMM, _addmm, unsuited=_needs_product),
        Provider(GELU, _gelu, unsuited=_needs_no_product),
    ),
    baseline=PLAIN,
    bars=tuple(
        Bar("never slower than the product with bias", f"ViT with its product, B={images}, float16", "seed_fast",
            (ADDMM,), 1, "device", "cuda")
        for images in (1, 8, 64)
    ),
    inputs=_inputs,
    truth=_truth,
    check=check,
    flops=_flops,
    bytes=_bytes,
    memory_cases=(),
)  # fmt: skip
