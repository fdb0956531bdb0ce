"""The Triton kernel: run by the interpreter on a CPU, natively on a GPU, and compiled for sm_80 and sm_90 anywhere."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")
GPU = torch.cuda.is_available()

CHECK = """
import math, torch
from seed_fast.ops import backend, nearest_code
from seed_fast.ops.nearest_code import reference
from tests.ops.exact_ids import exact_answer, margin_is_right
device = "cuda" if {gpu} else "cpu"
generator = torch.Generator().manual_seed(0)
draw = lambda *shape: torch.randn(*shape, generator=generator)
def check(z, codebook, margin=False):
    with backend("triton"):
        got = nearest_code(z.to(device), codebook.to(device), return_margin=margin)
    ids, gap = reference(z, codebook)
    assert torch.equal((got[0] if margin else got).cpu(), ids), (got, ids)
    if margin:
        assert all(map(margin_is_right, got[1].tolist(), exact_answer(z, codebook)[1])), (got, gap)
{body}
"""

CASES = {
    "shapes and dtypes": """
for n, k, d in [(1, 1, 1), (5, 7, 3), (70, 100, 32), (65, 129, 40), (3, 40, 256)]:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        check(draw(n, d).to(dtype), draw(k, d).to(dtype))
""",
    "margins": "check(draw(3, 8), draw(20, 8), margin=True)\ncheck(draw(2, 4), draw(1, 4), margin=True)",
    "ties": """
codebook = draw(20, 8)
check(draw(2, 8), torch.cat([codebook, codebook]))
check(draw(1, 4), torch.cat([codebook[:1, :4]] * 140), margin=True)
""",
    "one bit apart": """
codebook = draw(1, 8).expand(30, 8).contiguous()
codebook.view(torch.int32).add_(torch.randint(-1, 2, (30, 8), generator=generator, dtype=torch.int32))
check(draw(2, 8), codebook)
""",
    "magnitudes": "[check(draw(2, 8) * s, draw(20, 8) * s) for s in (1e-30, 1e15)]",
    "strides": "check(draw(8, 5).T, draw(20, 24)[:, ::3])\ncheck(draw(5, 16)[:, ::2], draw(8, 20).T)",
    "nan": """
z = draw(5, 8)
z[2, 3], z[4, 0] = math.nan, math.inf
with backend("triton"):
    ids, margin = nearest_code(z.to(device), draw(20, 8).to(device), return_margin=True)
assert (ids == -1).tolist() == [False, False, True, False, True] and margin.isnan().tolist() == (ids == -1).tolist()
broken = draw(20, 8)
broken[3] = 1e30
with backend("triton"):
    assert (nearest_code(z.to(device), broken.to(device)) == -1).all()
""",
}


@pytest.mark.parametrize("case", CASES)
def test_triton_ids_equal_the_reference(case):
    environment = dict(os.environ) if GPU else {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    script = CHECK.format(gpu=GPU, body=CASES[case])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_triton_kernels_compile_without_a_gpu(arch, dtype):
    import triton
    from seed_fast.kernels import nearest_code as kernels
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = {"z": f"*{dtype}", "codebook": f"*{dtype}", "ids": "*i64", "doubtful": "*i8", "margin": "*fp32"}
    sizes = dict.fromkeys(("N", "K", "D", "stride_zn", "stride_zd", "stride_ek", "stride_ed"), "i32")
    for kernel, constants in (
        (
            kernels.nearest_code_fwd_kernel,
            {"D": 32, "ALL_DOUBTFUL": False, "PADDED_D": 32, "BLOCK_N": 64, "BLOCK_K": 64},
        ),
        (kernels.nearest_code_exact_kernel, {"HAS_MARGIN": True, "BLOCK_K": 128}),
    ):
        signature = {name: "constexpr" if name in constants else (pointers | sizes)[name] for name in kernel.arg_names}
        source = ASTSource(kernel, signature, {(kernel.arg_names.index(k),): v for k, v in constants.items()})
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"enable_fp_fusion": True})
        assert f".target sm_{arch}" in compiled.asm["ptx"]
