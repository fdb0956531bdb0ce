"""The benchmark of nearest_code: the official formula, FAISS, vector-quantize-pytorch, and flash-kmeans on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

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
    needs_cpu_feature,
)
from seed_fast.ops import nearest_code, pack_codebook
from seed_fast.ops.nearest_code import reference

K, D = 8192, 32  # SEED's codebook
OFFICIAL, COMPILED, FAISS, FAISS_AVX2 = "official formula", "official, torch.compile", "FAISS", "FAISS, AVX2"
FLASH_KMEANS = "flash-kmeans"
TF32_ROUNDOFF = 2.0**-11
LARGEST_REFERENCE = 2048  # rows
# Bytes of [N, K] in float32; above it those who materialise the matrix, three times at the peak, are left out.
LARGEST_MATRIX = 2**30


def official_lookup(z: Tensor, codebook: Tensor) -> Tensor:
    """The official lookup, by the matrix of all distances: ids [N] of z [N, D] in codebook [K, D].

    Source: `VectorQuantizer2` in the official models/seed_qformer/qformer_quantizer.py.
    """
    distances_NK = (
        z.square().sum(dim=1, keepdim=True) + codebook.square().sum(dim=1) - 2 * torch.einsum("nd,kd->nk", z, codebook)
    )
    return distances_NK.argmin(dim=1)


def _official(inputs: Inputs, case: Case) -> Call:
    return lambda: official_lookup(**inputs)


def _compiled(inputs: Inputs, case: Case) -> Call:
    run = compile_once(official_lookup, *inputs.values())
    return lambda: run(**inputs)


def _cdist(inputs: Inputs, case: Case) -> Call:
    return lambda: torch.cdist(inputs["z"], inputs["codebook"]).argmin(dim=1)


def _faiss(inputs: Inputs, case: Case) -> Call:
    import faiss  # after torch, so that each has its own OpenMP; only one of them works at a time

    faiss.omp_set_num_threads(torch.get_num_threads())
    z, codebook = inputs["z"].numpy(), inputs["codebook"].numpy()
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook)
    return lambda: index.search(z, 1)[1][:, 0]


def _faiss_avx2(inputs: Inputs, case: Case) -> Call:
    from benchmarks.faiss_process import FaissProcess

    needs_cpu_feature("avx2")
    return FaissProcess(inputs["z"], inputs["codebook"], torch.get_num_threads())


def _vector_quantize_pytorch(inputs: Inputs, case: Case) -> Call:
    from vector_quantize_pytorch import VectorQuantize

    codebook = inputs["codebook"]
    quantizer = VectorQuantize(dim=codebook.shape[1], codebook_size=codebook.shape[0]).eval().to(codebook.device)
    quantizer.codebook = codebook
    z = inputs["z"][None]

    @torch.no_grad()
    def call() -> Tensor:
        return quantizer(z)[1][0]

    return call


def _flash_kmeans(inputs: Inputs, case: Case) -> Call:
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    z, codebook = inputs["z"][None], inputs["codebook"][None]
    codebook_norms = codebook.square().sum(-1)  # as constant as a packed codebook
    return lambda: euclid_assign_triton(z, codebook, z.square().sum(-1), c_sq=codebook_norms)[0]


def _packed_once(inputs: Inputs, case: Case) -> Call:
    z, packed = inputs["z"], pack_codebook(inputs["codebook"])
    return lambda: nearest_code(z, packed)


def _packed_per_call(inputs: Inputs, case: Case) -> Call:
    z, codebook = inputs["z"], inputs["codebook"]
    return lambda: nearest_code(z, codebook)


def _reference(inputs: Inputs, case: Case) -> Call:
    return lambda: reference(**inputs)[0]


def _slow(case: Case) -> str:
    return f"left out above N={LARGEST_REFERENCE}: slow" if case.shape["N"] > LARGEST_REFERENCE else ""


def _materialises(case: Case) -> str:
    size = 4 * case.shape["N"] * case.shape["K"]
    return f"left out: its [N, K] is {size / 2**30:.0f} GiB" if size > LARGEST_MATRIX else ""


def _inputs(case: Case, device: str, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    n, k, d = case.shape["N"], case.shape["K"], case.shape["D"]
    codebook = torch.randn(k, d, generator=generator)
    if case.options.get("collapsed"):  # entries that differ in the last bits only, as a collapsed codebook's do
        codebook = codebook[:1] * (1 + 2**-22 * codebook)
    z = torch.randn(n, d, generator=generator)
    return {name: x.to(device, case.torch_dtype()) for name, x in {"z": z, "codebook": codebook}.items()}


def _truth(inputs: Inputs, case: Case) -> Tensor:
    return reference(inputs["z"], inputs["codebook"])[0]


def check(case: Case, provider: Provider, output: object, inputs: Inputs, truth: Tensor) -> tuple[str, str]:
    """Check ids: ours must be the float64 argmin everywhere; a peer's may differ within the rounding of its arithmetic.

    A peer may return an entry whose float64 distance is above the smallest by no more than rounding can hide, which is
    2 (D + 4) u (|z| + max |codebook|)^2 for the unit roundoff u.
    """
    ids = torch.as_tensor(output).to(truth.device, torch.int64)
    if ids.shape != truth.shape:
        return f"ids must be {list(truth.shape)}, got {list(ids.shape)}", ""
    if ((ids < 0) | (ids >= len(inputs["codebook"]))).any():
        return "ids outside the codebook", ""
    differ = (ids != truth).nonzero()[:, 0]
    if not len(differ):
        return "", ""
    counted = f"{len(differ)} of {len(truth)} ids differ from float64"
    if provider.ours:
        return counted, ""
    z, got, best = (x.double() for x in (inputs["z"][differ], inputs["codebook"][ids[differ]],
                                         inputs["codebook"][truth[differ]]))  # fmt: skip
    excess = (z - got).square().sum(1) - (z - best).square().sum(1)
    roundoff = provider.roundoff or torch.finfo(case.torch_dtype()).eps / 2
    largest = inputs["codebook"].double().norm(dim=1).max()
    allowed = 2 * (case.shape["D"] + 4) * roundoff * (z.norm(dim=1) + largest).square()
    far = int((excess > allowed).sum())
    return (f"{far} of {len(truth)} ids beyond rounding", "") if far else ("", f"{counted}, within its rounding")


def _cases() -> tuple[Case, ...]:
    named = {f"N={n}": {"N": n, "K": K, "D": D} for n in (32, 256, 2048, 8192, 65536)}
    named |= {"N=2048 D=64": {"N": 2048, "K": K, "D": 64}, "N=2048 K=1024 D=256": {"N": 2048, "K": 1024, "D": 256}}
    cases = [Case(name, shape, quick=name == "N=256") for name, shape in named.items()]
    return (*cases, Case("N=2048 collapsed", {"N": 2048, "K": K, "D": D}, options={"collapsed": True}))


def _bars() -> tuple[Bar, ...]:
    cpu = (
        Bar("10x the official formula", "N=8192", "seed_fast", (OFFICIAL,), 10),
        Bar("plain float32: 1.15x FAISS", "N=8192", "seed_fast, avx512", (FAISS,), 1.15),
        Bar("2x FAISS", "N=256", "seed_fast", (FAISS,), 2),
        Bar("2x FAISS", "N=2048", "seed_fast", (FAISS,), 2),
        Bar("with screening: 2x FAISS", "N=8192", "seed_fast", (FAISS,), 2),
        *(
            Bar(f"without AVX-512: {factor}x FAISS on AVX2", f"N={n}", "seed_fast, avx2", (FAISS_AVX2,), factor)
            for n, factor in ((256, 1.9), (2048, 3.6), (8192, 2))
        ),
        Bar("collapsed codebook: within 1.2x of plain float32", "N=2048 collapsed", "seed_fast",
            ("seed_fast, avx512",), 1 / 1.2),
    )  # fmt: skip
    gpu = (
        Bar("10x the official formula", "N=8192", "seed_fast", (OFFICIAL,), 10, device="cuda"),
        Bar("3x its torch.compile", "N=8192", "seed_fast", (COMPILED,), 3, device="cuda"),
        Bar("5x the official formula in a CUDA graph", "N=32", "seed_fast", (OFFICIAL,), 5, "device", "cuda"),
        *(
            Bar("ahead of flash-kmeans", f"N={n}", "seed_fast", (FLASH_KMEANS,), 1, "device", "cuda")
            for n in (32, 2048, 8192)
        ),
    )
    return cpu + gpu


BENCHMARK = Benchmark(
    op="nearest_code",
    cases=_cases(),
    providers=(
        Provider("seed_fast", _packed_once, ours=True),
        Provider("seed_fast, packed per call", _packed_per_call, ours=True),
        *each_instruction_set(_packed_once),
        *each_gpu_backend(_packed_once),
        Provider("float64 reference", _reference, unsuited=_slow),
        Provider(OFFICIAL, _official, unsuited=_materialises),
        Provider(COMPILED, _compiled, unsuited=_materialises),
        Provider("torch.cdist", _cdist, unsuited=_materialises),
        Provider(FAISS, _faiss, devices=("cpu",), package="faiss-cpu"),
        Provider(FAISS_AVX2, _faiss_avx2, devices=("cpu",), package="faiss-cpu"),
        Provider("vector-quantize-pytorch", _vector_quantize_pytorch, package="vector-quantize-pytorch",
                 unsuited=_materialises),
        Provider(FLASH_KMEANS, _flash_kmeans, devices=("cuda",), package="flash-kmeans", roundoff=TF32_ROUNDOFF),
    ),
    baseline=OFFICIAL,
    bars=_bars(),
    inputs=_inputs,
    truth=_truth,
    check=check,
    flops=lambda case: 2 * case.shape["N"] * case.shape["K"] * case.shape["D"],
    bytes=lambda case: 4 * (case.shape["N"] + case.shape["K"]) * case.shape["D"] + 8 * case.shape["N"],
    memory_cases=("N=8192",),
)  # fmt: skip
