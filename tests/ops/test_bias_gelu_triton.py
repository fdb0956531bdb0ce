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
import torch.nn.functional as F
from seed_fast.ops import bias_gelu, backend
from seed_fast.testing import check_budget
from tests.ops import test_bias_gelu as contract
device = "cuda" if {gpu} else "cpu"
generator = torch.Generator().manual_seed(0)
draw = lambda *shape: torch.randn(*shape, generator=generator).to(device)
fresh = torch.empty
torch.empty = lambda *shape, **options: fresh(*shape, **options).fill_(math.nan)
{body}
"""

CASES = {
    "shapes and dtypes": """
for n, d in [(1, 1), (3, 7), (5, 96), (2, 1408)]:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for bias_dtype in (torch.float32, dtype):
            contract.check(draw(n, d).to(dtype), draw(d).to(bias_dtype))
""",
    "strides, in place, empty": """
x, bias = draw(20, 9).T, draw(40)[::2]
contract.check(x, bias)
rows = x.contiguous()
assert torch.equal(bias_gelu(rows.clone(), bias, inplace=True), bias_gelu(x, bias))
assert bias_gelu(rows[:0], bias).shape == (0, 20)
""",
    "magnitudes and nan": """
for magnitude in (1e-30, 1e-4, 1e4, 1e30):
    contract.check(draw(3, 40) * magnitude, draw(40) * magnitude)
x = draw(3, 40)
x[1, 5] = math.nan
assert bias_gelu(x, draw(40)).isnan().nonzero().tolist() == [[1, 5]]
""",
    "gradients": """
x, bias = draw(6, 33).requires_grad_(), draw(33).requires_grad_()
grads = torch.autograd.grad(bias_gelu(x, bias).sin().sum(), (x, bias))
truth = [t.detach().double().requires_grad_() for t in (x, bias)]
exactly, plainly = (torch.autograd.grad(F.gelu(x + bias).sin().sum(), (x, bias)) for x, bias in (truth, (x, bias)))
for each in zip(grads, exactly, plainly):
    check_budget(*each, factor=3)
""",
}


@pytest.mark.parametrize("case", CASES)
def test_triton_results_are_those_of_the_definition(case):
    environment = dict(os.environ) if GPU else {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    script = CHECK.format(gpu=GPU, body="with backend('triton'):\n    " + CASES[case].strip().replace("\n", "\n    "))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_triton_kernel_compiles_without_a_gpu(arch, dtype):
    import triton
    from seed_fast.kernels.bias_gelu import bias_gelu_fwd_kernel as kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {"BLOCK_N": 4, "BLOCK_D": 1024}
    kinds = dict.fromkeys(("x", "bias", "y"), f"*{dtype}") | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): x for name, x in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"enable_fp_fusion": True})
    assert f".target sm_{arch}" in compiled.asm["ptx"]
