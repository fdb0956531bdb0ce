"""The Triton kernels: run by the interpreter on a CPU, natively on a GPU, and compiled for sm_80 and sm_90 anywhere."""

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
from seed_fast.ops import backend, vector_quantize
from seed_fast.ops.vector_quantize import reference
device = "cuda" if {gpu} else "cpu"
generator = torch.Generator().manual_seed(0)
draw = lambda *shape: torch.randn(*shape, generator=generator)
def close(got, true, dtype, slack=1):
    eps = torch.finfo(dtype).eps * slack
    torch.testing.assert_close(got.cpu().double(), true, rtol=eps, atol=eps * 1e-3, equal_nan=True)
def check(z, codebook, layout=lambda x: x):
    ours = [layout(x.clone().to(device)).requires_grad_() for x in (z, codebook)]
    truth = [x.double().requires_grad_() for x in (z, codebook)]
    weights = draw(*z.shape).to(z.dtype)
    with backend("triton"):
        got = vector_quantize(*ours)
        z_q, ids, commit, codebook_loss = got
        ((z_q.double() * weights.to(device)).sum() + 1.5 * commit + 0.25 * codebook_loss).backward()
    expected = reference(*truth)
    ((expected[0] * weights.double()).sum() + 1.5 * expected[2] + 0.25 * expected[3]).backward()
    assert torch.equal(ids.cpu(), expected[1])
    assert z_q.dtype == z.dtype and commit.dtype == codebook_loss.dtype == torch.float32
    close(z_q, codebook[expected[1]].to(z.dtype).double(), torch.float64)
    close(commit, expected[2], torch.float32)
    close(codebook_loss, expected[3], torch.float32)
    for mine, true in zip(ours, truth):
        assert mine.grad.dtype == mine.dtype
        close(mine.grad, true.grad, mine.dtype)
{body}
"""

CASES = {
    "shapes and dtypes": """
for n, k, d in [(1, 1, 1), (5, 7, 3), (70, 20, 32), (33, 40, 100)]:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        check(draw(n, d).to(dtype), draw(k, d).to(dtype))
""",
    "strides": "check(draw(24, 8), draw(9, 8), lambda x: x.T.contiguous().T)",
    "few entries for many rows": "check(draw(200, 8), draw(3, 8))",
    "nan": """
z, codebook = draw(6, 4).to(device).requires_grad_(), draw(9, 4).to(device).requires_grad_()
with torch.no_grad():
    z[2, 1] = math.nan
with backend("triton"):
    z_q, ids, commit, codebook_loss = vector_quantize(z, codebook)
    grad_z, grad_codebook = torch.autograd.grad(z_q.nan_to_num().sum() + commit + codebook_loss, (z, codebook))
bad = [False, False, True, False, False, False]
assert (ids == -1).tolist() == bad and z_q.isnan().any(1).tolist() == bad and grad_z.isnan().any(1).tolist() == bad
assert commit.isnan() and codebook_loss.isnan() and not grad_codebook.isnan().any()
""",
    "empty": """
z, codebook = torch.zeros(0, 8, device=device), draw(5, 8).to(device).requires_grad_()
with backend("triton"):
    z_q, ids, commit, codebook_loss = vector_quantize(z, codebook)
    (grad,) = torch.autograd.grad(codebook_loss, codebook)
assert z_q.shape == (0, 8) and ids.shape == (0,) and commit.isnan() and (grad == 0).all()
""",
    "the same every time": """
z, codebook = draw(300, 8).to(device), draw(3, 8).to(device).requires_grad_()
with backend("triton"):
    gradients = [torch.autograd.grad(vector_quantize(z, codebook)[3], codebook)[0] for _ in range(3)]
assert all(torch.equal(gradients[0], other) for other in gradients)
""",
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_definition(case):
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
    from seed_fast.kernels import vector_quantize as kernels
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = dict.fromkeys(("z", "codebook", "z_q", "grad_z_q", "grad_z", "grad_codebook"), f"*{dtype}")
    types |= dict.fromkeys(("ids", "order", "first"), "*i64") | {"sums": "*fp64"}
    types |= dict.fromkeys(("grad_commit", "grad_codebook_loss"), "*fp32")
    constants = {"D": 32, "PADDED_D": 32, "BLOCK_N": 32}
    for kernel in (
        kernels.vector_quantize_fwd_kernel,
        kernels.vector_quantize_bwd_z_kernel,
        kernels.vector_quantize_bwd_codebook_kernel,
    ):
        signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
        source = ASTSource(kernel, signature, {(kernel.arg_names.index(k),): v for k, v in constants.items()})
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"enable_fp_fusion": True})
        assert f".target sm_{arch}" in compiled.asm["ptx"]
