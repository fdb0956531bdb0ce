"""What a machine reaches at best, by torch: matrix products per dtype, and copying memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from seed_fast.model.products import onednn_takes, product

ROUNDS = 7


def ceilings(device: str, quick: bool = False) -> dict[str, float]:
    """Measure them now; about a second.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        quick: smaller matrices and copies, in a fraction of the time.

    Returns:
        {"gemm_float32_gflops", "gemm_bfloat16_gflops", "copy_gb_per_s"} and on a GPU "gemm_float16_gflops"; copies
        count bytes read and written.
    """
    on_gpu = torch.device(device).type == "cuda"
    size = 512 if quick else (8192 if on_gpu else 2048)
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16) if on_gpu else (torch.float32, torch.bfloat16):
        found[f"gemm_{str(dtype).removeprefix('torch.')}_gflops"] = gemm_peak(device, dtype, size)
    source = torch.ones((1 << 22) if quick else (1 << 26), device=device)
    target = torch.empty_like(source)
    best = _fewest_seconds(lambda: target.copy_(source), on_gpu)
    return found | {"copy_gb_per_s": 2 * source.nbytes / best / 1e9}


def gemm_peak(device: str, dtype: torch.dtype, size: int) -> float:
    """GFLOP/s of the product of two square matrices, by the fastest library that the plan has."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    fewest = _fewest_seconds(lambda: torch.mm(a, b, out=out), a.is_cuda)
    if onednn_takes(a.device, dtype):  # which torch.mm doesn't use in float32
        fewest = min(fewest, _fewest_seconds(lambda: product(a, b), False))
    return 2 * size**3 / fewest / 1e9


def _fewest_seconds(call: Callable[[], object], on_gpu: bool) -> float:
    """A ceiling is what the machine can do, not what it did in a noisy moment."""
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    call()
    found = []
    for _ in range(ROUNDS):
        wait()
        start = time.perf_counter()
        call()
        wait()
        found.append(time.perf_counter() - start)
    return min(found)
