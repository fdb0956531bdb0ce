"""The Triton kernel: run by the interpreter on a CPU, natively on a GPU, and compiled for sm_80 and sm_90 anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
GPU = torch.cuda.is_available()
ROOT = Path(__file__).parents[2]  # from where a script imports `tests`

CHECK = """
import math, torch
from seed_fast.ops import attention, backend
from seed_fast.testing import check_budget
from tests.ops.attention_cases import plain, structured
device = "cuda" if {gpu} else "cpu"
generator = torch.Generator().manual_seed(0)
draw = lambda *shape: torch.randn(*shape, generator=generator)
fresh = torch.empty
torch.empty = lambda *shape, **options: fresh(*shape, **options).fill_(math.nan)
def run(*qkv, **options):
    with backend("triton"):
        return attention(*(x.to(device) for x in qkv), **options).cpu()
def check(q, k, v, **options):
    got = run(q, k, v, **options)
    causal, scale = options.get("causal", False), options.get("scale")
    check_budget(got, plain(*(x.double() for x in (q, k, v)), causal, scale), plain(q, k, v, causal, scale))
{body}
"""

CASES = {
    "shapes and dtypes": """
for lq, lk, d in [(32, 32, 64), (32, 257, 64), (33, 70, 88), (1, 1, 16), (5, 3, 24), (3, 65, 128)]:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        q, (k, v) = draw(1, lq, 2, d).to(dtype), draw(1, lk, 2, 2, d).to(dtype).unbind(2)
        check(q, k, v)
        check(q, k, v, causal=True)
""",
    "batches, heads and strides": """
q, k, v = draw(2, 9, 3, 3, 16).unbind(2)
check(q, k, v)
check(*(x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0) for x in (q, k, v)), causal=True)
check(q[:0], k[:0], v[:0])
check(q[:, :0], k, v)
""",
    "magnitudes": "[check(*(draw(1, 5, 1, 16) * scale for _ in range(3))) for scale in (1e-20, 1e-3, 5.0)]",
    "structured scores": """
for dtype in (torch.float32, torch.float16):
    for name, q, k, v, scale in structured(32, 70, dtype):
        print(name, dtype, flush=True)
        check(q[:, :, :2], k[:, :, :2], v[:, :, :2], scale=scale)
""",
    "infinities": """
k = torch.full((1, 200, 1, 16), -math.inf)
k[0, 150] = 1.0
v = draw(1, 200, 1, 16)
assert torch.equal(run(torch.ones(1, 1, 1, 16), k, v)[0, 0], v[0, 150])
q = draw(1, 3, 1, 16)
q[0, 1, 0, 5] = math.nan
assert run(q, draw(1, 70, 1, 16), draw(1, 70, 1, 16)).isnan().flatten(2).all(2).tolist() == [[False, True, False]]
""",
}


@pytest.mark.parametrize("case", CASES)
def test_triton_results_equal_the_reference(case):
    environment = dict(os.environ) if GPU else {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    script = CHECK.format(gpu=GPU, body=CASES[case])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(("dtype", "d"), [("fp32", 64), ("fp16", 88), ("bf16", 88)])
def test_triton_kernel_compiles_without_a_gpu(arch, dtype, d):
    import triton
    from seed_fast.kernels.attention import attention_fwd_kernel as kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {"D": d, "PADDED_D": triton.next_power_of_2(d), "CAUSAL": True, "UPCAST": False}
    constants |= {"BLOCK_Q": 32, "BLOCK_K": 64}
    kinds = dict.fromkeys(("q", "k", "v", "out"), f"*{dtype}")
    kinds |= {"scale": "fp32"} | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): x for name, x in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"enable_fp_fusion": True})
    assert f".target sm_{arch}" in compiled.asm["ptx"]
    assert dtype == "fp32" or "mma" in compiled.asm["ptx"], "no tensor cores"
