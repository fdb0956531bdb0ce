"""The work of the kernels on given problems: arithmetic and traffic that are claimed, and how often each loop runs.

The numbers of blocks, warps and turns repeat what csrc/cuda/attention_plan.h and nearest_code.h decide for a V100 (80
multiprocessors); the report divides the arithmetic that follows from them and from the machine code by what is claimed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

MULTIPROCESSORS = 80
BATCH = 64
VIT = (16, 257, 257, 88)  # heads, queries, keys, head width
CROSS = (12, 32, 257, 64)
SELF = (12, 32, 32, 64)


@dataclass(frozen=True)
class Work:
    """One problem on one kernel.

    Attributes:
        case: the problem in words.
        instruction: the one that does the arithmetic: HMMA (tensor cores) or FFMA.
        blocks, warps: blocks of the grid, and warps of a block.
        straight: how often a warp runs the instructions of this kind that stand outside of all loops.
        turns: how often a warp runs each loop that has such instructions, in all. Like `straight` it may be a
            fraction, where only that share of the warps runs them.
        flops, bytes, outputs: arithmetic, traffic and elements written that the definition needs.
    """

    case: str
    instruction: str
    blocks: int
    warps: int
    straight: float
    turns: tuple[float, ...]
    flops: int
    bytes: int
    outputs: int


def _attention(kernel: str, case: str, shape: tuple[int, int, int, int], causal: bool = False) -> Work:
    heads, lq, lk, width = shape
    columns = re.search(r"_w(\d+)_", kernel)
    if columns is None:
        raise ValueError(f"{kernel}: expected the width in the name, such as _w64_")
    wide = int(columns[1])
    single = "float32" in kernel
    pairs = sum(min(lk, i + 1) for i in range(lq)) if causal else lq * lk
    rows, instruction = 32, "HMMA"
    if "_sm70_" not in kernel:
        rows, instruction = 96 if "_rows96_" in kernel else 32, "FFMA"
        # Weights and rescaled sums: 32 keys a turn. Scores: four dimensions of 32 keys. Then, for every 32 columns,
        # four keys a turn.
        turns = (float(ceil(lk / 32)), ceil(lk / 32) * width / 4, *[float(ceil(lk / 4))] * (wide // 32))
        warps = 4
    elif "_many_" in kernel:
        rows, warps = 96, 3
        turns = (float(ceil(lk / {32: 32, 64: 24, 88: 16, 128: 24}[wide])),)
    else:
        warps, units = 4, ceil(wide / 16)
        # Warps share out units of 16 columns; where they don't divide by four, some have one less.
        turns = (ceil(lk / (32 if "_keys32_" in kernel else 96)) * units / (4 * ceil(units / 4)),)
    elements = BATCH * heads * width * (2 * lq + 2 * lk)
    return Work(
        case=f"{case}, {heads} heads x {width}, batch {BATCH}",
        instruction=instruction,
        blocks=BATCH * heads * ceil(lq / rows),
        warps=warps,
        straight=1,
        turns=turns,
        flops=4 * BATCH * heads * width * pairs,
        bytes=elements * (4 if single else 2),
        outputs=BATCH * heads * width * lq,
    )


def _nearest_code(kernel: str, case: str, shape: tuple[int, int, int]) -> Work:
    n, k, d = shape
    tiles, row_blocks, wanted = ceil(k / 128), ceil(n / 64), 12 * MULTIPROCESSORS
    per_block = ceil(tiles / min(tiles, max(1, wanted // row_blocks)))
    shares = ceil(tiles / per_block)
    return Work(
        case=f"{case}: N {n}, K {k}, D {d}",
        instruction="HMMA",
        blocks=row_blocks * shares,
        warps=4,
        straight=0,
        turns=(float(per_block * ceil(d / 32)),),
        flops=2 * n * k * d,
        bytes=4 * n * d + 2 * k * d + 24 * n * shares,
        outputs=n,
    )


def _cases() -> dict[str, list[Work]]:
    cases: dict[str, list[Work]] = {}

    def add(make: Callable[..., Work], kernel: str, case: str, *arguments: object) -> None:
        cases.setdefault(kernel, []).append(make(kernel, case, *arguments))

    for keys, case, shape, causal in (
        (32, "causal 32x32", SELF, True),
        (32, "bidirectional 32x32", SELF, False),
        (288, "cross 32x257", CROSS, False),
    ):
        add(_attention, f"attention_fwd_sm70_keys{keys}_w64_kernel", case, shape, causal)
        add(_attention, "attention_fwd_float32_rows32_w64_kernel", case, shape, causal)
    add(_attention, "attention_fwd_sm70_many_w88_kernel", "ViT 257x257", VIT)
    add(_attention, "attention_fwd_float32_rows96_w96_kernel", "ViT 257x257", VIT)
    # The others at their own width.
    for prefix, widths, lq, lk in (
        ("sm70_keys32", (32, 88, 128), 32, 32),
        ("sm70_keys288", (32, 88, 128), 32, 288),
        ("sm70_many", (32, 64, 128), 288, 288),
        ("float32_rows32", (32, 96, 128), 32, 32),
        ("float32_rows96", (32, 64, 128), 288, 288),
        ("float32_unaligned", (32, 64, 96, 128), 32, 32),
        ("float16_unaligned", (32, 64, 96, 128), 32, 32),
    ):
        for width in widths:
            add(_attention, f"attention_fwd_{prefix}_w{width}_kernel", f"{lq}x{lk}", (16, lq, lk, width))
    for case, problem in (("one image", (32, 8192, 32)), ("256 images", (8192, 8192, 32))):
        add(_nearest_code, "nearest_code_fwd_sm70_kernel", case, problem)
    return cases


CASES = _cases()
