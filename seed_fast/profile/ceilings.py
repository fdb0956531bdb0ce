"""Measure what a machine reaches at best: matrix products per dtype, and copies of memory.

The matrices start small and grow while the next size fits into the time: one machine multiplies a thousand times as
fast as another, and so does one dtype as another where the processor has no instructions for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from seed_fast.model.cpu_products import computed_in_float32, onednn_takes, product

ROUNDS, SECONDS = 7, 1.5  # per ceiling: at most so many calls in about so many seconds, but at least one call
SMALLEST = 128


def ceilings(device: str, quick: bool = False) -> dict[str, float]:
    """Measure the ceilings now; it takes a second or two, and never more than some seconds.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        quick: smaller matrices and copies, in a fraction of the time.

    Returns:
        {"gemm_float32_gflops", "gemm_bfloat16_gflops", "copy_gb_per_s"}, and on a GPU "gemm_float16_gflops": GFLOP/s of
        matrix products, and GB/s of copies, which count bytes read and written.
    """
    on_gpu = torch.device(device).type == "cuda"
    size = 512 if quick else (8192 if on_gpu else 2048)
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16) if on_gpu else (torch.float32, torch.bfloat16):
        found[f"gemm_{str(dtype).removeprefix('torch.')}_gflops"] = gemm_peak(device, dtype, size)
    source = torch.ones((1 << 22) if quick else (1 << 26), device=device)
    target = torch.empty_like(source)
    best = _fewest_seconds(lambda: target.copy_(source), on_gpu, SECONDS)
    return found | {"copy_gb_per_s": 2 * source.nbytes / best / 1e9}


def gemm_peak(device: str, dtype: torch.dtype, size: int, seconds: float = SECONDS) -> float:
    """Measure the product of two square matrices in the fastest of the libraries that the plan can use.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        dtype: dtype of the matrices.
        size: largest side; sides double up to it while `seconds` allow.
        seconds: about how long one library may take.

    Returns:
        GFLOP/s of the best call.
    """
    side, best = min(SMALLEST, size), 0.0
    libraries = _libraries(torch.device(device), dtype)
    left = dict.fromkeys(libraries, seconds)
    while libraries and side <= size:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        for name in list(libraries):
            start = time.perf_counter()
            fewest = _fewest_seconds(partial(libraries[name], a, b, out), a.is_cuda, left[name])
            best = max(best, 2 * side**3 / fewest / 1e9)
            left[name] -= time.perf_counter() - start
            if 8 * 2 * fewest > left[name]:  # the next size: a call that warms up, and one that counts
                del libraries[name]
        side = min(2 * side, size) if side < size else size + 1
    return best


def _libraries(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[..., object]]:
    """Return {name: function of (a, b, out)} for the libraries that can multiply matrices of this dtype."""
    found: dict[str, Callable[..., object]] = {"torch": lambda a, b, out: torch.mm(a, b, out=out)}
    if onednn_takes(device, dtype):  # which torch.mm doesn't use in float32
        found["oneDNN"] = lambda a, b, out: product(a, b)
    if computed_in_float32(device, dtype):  # the plan does so where the processor lacks instructions
        found["float32"] = lambda a, b, out: torch.mm(a.float(), b.float())
    return found


def _fewest_seconds(call: Callable[[], object], on_gpu: bool, seconds: float) -> float:
    """Return the shortest time of several calls in s: what the machine can do, not what it did in a noisy moment.

    The first call counts too, because it may be the only one that fits.
    """
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    end = time.perf_counter() + seconds
    found: list[float] = []
    while len(found) <= ROUNDS:
        wait()
        start = time.perf_counter()
        call()
        wait()
        found.append(time.perf_counter() - start)
        if start + 2 * found[-1] > end:
            break
    return min(found)
