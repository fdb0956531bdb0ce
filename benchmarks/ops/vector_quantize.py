"""The benchmark of vector_quantize, forward and backward: the official module and vector-quantize-pytorch.

Every provider computes z_q (straight-through), ids, and the gradients of z and the codebook under the same objective:
the sum of both loss terms, each of weight 1 (vector-quantize-pytorch has no other), and a given gradient of z_q.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.ops.nearest_code import D, K, official_lookup
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
from seed_fast.ops import vector_quantize
from seed_fast.ops.nearest_code import reference as nearest_code_reference

OFFICIAL, COMPILED, PEER = "official module", "official, torch.compile", "vector-quantize-pytorch"
TOLERANCE = 64  # unit roundoffs, relative to the largest element


def _gradients(z_q: Tensor, ids: Tensor, loss: Tensor, z: Tensor, codebook: Tensor, weight: Tensor) -> list[Tensor]:
    return [z_q.detach(), ids, *torch.autograd.grad([z_q, loss], [z, codebook], [weight, torch.ones_like(loss)])]


def _forward_official(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The official forward pass: (z_q, ids, loss), with both terms of the loss unweighted.

    Source: `VectorQuantizer2.forward` in the official models/seed_qformer/qformer_quantizer.py.
    """
    ids = official_lookup(z, codebook)
    chosen = functional.embedding(ids, codebook)
    loss = functional.mse_loss(chosen.detach(), z) + functional.mse_loss(chosen, z.detach())
    return z + (chosen - z).detach(), ids, loss


def _official(inputs: Inputs, case: Case) -> Call:
    z, codebook = inputs["z"], inputs["codebook"]
    return lambda: _gradients(*_forward_official(z, codebook), **inputs)


def _compiled(inputs: Inputs, case: Case) -> Call:
    z, codebook = inputs["z"], inputs["codebook"]
    forward = compile_once(_forward_official, z, codebook)
    return lambda: _gradients(*forward(z, codebook), **inputs)


def _ours(inputs: Inputs, case: Case) -> Call:
    def call() -> list[Tensor]:
        z_q, ids, commit, codebook_loss = vector_quantize(inputs["z"], inputs["codebook"])
        return _gradients(z_q, ids, commit + codebook_loss, **inputs)

    return call


def _vector_quantize_pytorch(inputs: Inputs, case: Case) -> Call:
    from vector_quantize_pytorch import VectorQuantize

    z, weight = inputs["z"], inputs["weight"]
    quantizer = VectorQuantize(
        dim=z.shape[1],
        codebook_size=len(inputs["codebook"]),
        learnable_codebook=True,
        ema_update=False,
        rotation_trick=False,
        commitment_weight=1.0,
    ).to(z.device)
    with torch.no_grad():
        quantizer.codebook = inputs["codebook"]
    parameter = quantizer._codebook.embed  # [1, K, D]; `codebook` gives a view of its values alone

    def call() -> list[Tensor]:
        z_q, ids, loss = quantizer(z[None])
        z_q, *rest = _gradients(z_q, ids[0], loss.sum(), z, parameter, weight[None])
        return [z_q[0], rest[0], rest[1], rest[2][0]]

    return call


def _inputs(case: Case, device: str, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    n, k, d = case.shape["N"], case.shape["K"], case.shape["D"]
    codebook = torch.randn(k, d, generator=generator)
    # Near an entry each, so that no rounding changes an id, and gradients can be compared.
    z = codebook[torch.randint(k, (n,), generator=generator)] + 0.1 * torch.randn(n, d, generator=generator)
    weight = torch.randn(n, d, generator=generator) / n
    tensors = {name: x.to(device) for name, x in {"z": z, "codebook": codebook, "weight": weight}.items()}
    return tensors | {name: tensors[name].requires_grad_() for name in ("z", "codebook")}


def _truth(inputs: Inputs, case: Case) -> list[Tensor]:
    z, codebook = (inputs[name].detach().double().requires_grad_() for name in ("z", "codebook"))
    ids = nearest_code_reference(z.detach(), codebook.detach())[0]
    chosen = codebook[ids]
    loss = functional.mse_loss(chosen.detach(), z) + functional.mse_loss(chosen, z.detach())
    return _gradients(z + (chosen - z).detach(), ids, loss, z, codebook, inputs["weight"].double())


def check(case: Case, provider: Provider, output: list[Tensor], inputs: Inputs, truth: list[Tensor]) -> tuple[str, str]:
    """Check that ids equal float64's; z_q and gradients to within `TOLERANCE` roundoffs of their largest element."""
    for name, got, true in zip(("z_q", "ids", "gradient of z", "gradient of codebook"), output, truth, strict=True):
        if got.shape != true.shape:
            return f"{name} must be {list(true.shape)}, got {list(got.shape)}", ""
        if name == "ids":
            if differ := int((got != true).sum()):
                return f"{differ} of {len(true)} ids differ from float64", ""
            continue
        error = float((got.double() - true).abs().max() / true.abs().max())
        if not error <= TOLERANCE * torch.finfo(case.torch_dtype()).eps / 2:
            return f"{name} is off by {error:.2g} of its largest element", ""
    return "", ""


BENCHMARK = Benchmark(
    op="vector_quantize",
    cases=tuple(Case(f"N={n}", {"N": n, "K": K, "D": D}, quick=n == 256) for n in (256, 2048, 8192)),
    providers=(
        Provider("seed_fast", _ours, ours=True),
        *each_instruction_set(_ours),
        *each_gpu_backend(_ours),
        Provider(OFFICIAL, _official),
        Provider(COMPILED, _compiled),
        Provider(PEER, _vector_quantize_pytorch, package="vector-quantize-pytorch"),
    ),
    baseline=OFFICIAL,
    bars=tuple(
        Bar(f"ahead of {peer}", f"N={n}", "seed_fast", (peer,), 1, device=device)
        for device in ("cpu", "cuda")
        for n in (256, 2048, 8192)
        for peer in (OFFICIAL, PEER)
    ),
    inputs=_inputs,
    truth=_truth,
    check=check,
    # The lookup; gather, losses and both gradients are linear in N D.
    flops=lambda case: 2 * case.shape["N"] * case.shape["K"] * case.shape["D"],
    bytes=lambda case: 4 * case.shape["D"] * (4 * case.shape["N"] + 2 * case.shape["K"]) + 8 * case.shape["N"],
    memory_cases=("N=8192",),
)
