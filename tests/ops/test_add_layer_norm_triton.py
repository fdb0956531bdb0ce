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
from seed_fast.ops import add_layer_norm, backend
from seed_fast.testing import check_budget
from tests.ops import test_add_layer_norm as contract
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
        for post_norm in (False, True):
            x, delta, weight, bias = draw(n, d), draw(n, d).to(dtype), 1 + 0.1 * draw(d), 0.1 * draw(d)
            contract.check((x, delta, weight, bias), out_dtype=dtype, post_norm=post_norm)
""",
    "mixed dtypes and strides": """
# The interpreter cuts bfloat16 off where a GPU rounds, so that no sum that is kept in it could be compared.
for dtype in (torch.float16, *([torch.bfloat16] if device == "cuda" else [])):
    x, delta, weight, bias = draw(20, 9).to(dtype).T, draw(9, 40)[:, ::2], draw(40)[::2], draw(20).bfloat16()
    for post_norm in (False, True):
        contract.check((x, delta, weight, bias), out_dtype=torch.float32, post_norm=post_norm)
""",
    "constant, nan, far from zero, empty": """
x, delta, weight, bias = draw(6, 1408), torch.zeros(6, 1408, device=device), 1 + 0.1 * draw(1408), draw(1408)
x[3], x[4, 7], x[5] = 0.1, math.nan, x[5] + 4096
y = add_layer_norm(x, delta, weight, bias, 1e-12)[1]
assert torch.equal(y[3], bias)
assert y.isnan().any(1).tolist() == [False, False, False, False, True, False]
contract.check((x[5:], delta[5:], weight, bias))
x, y = add_layer_norm(x[:0], delta[:0], weight, bias, 1e-12)
assert x.shape == y.shape == (0, 1408)
""",
    "in place and gradients": """
from seed_fast.ops.backends import add_layer_norm as backends
x, delta, weight, bias = draw(6, 33), draw(6, 33), draw(33), draw(33)
stream, y = add_layer_norm(x, delta, weight, bias, 1e-6)
again = torch.empty(6, 33, device=device)
backends.triton(x, delta, weight, bias, 1e-6, False, x, again)
assert torch.equal(x, stream) and torch.equal(again, y)
tensors = [t.requires_grad_() for t in (x, delta, weight, bias)]
grads = torch.autograd.grad(add_layer_norm(*tensors, 1e-6)[1].sin().sum(), tensors)
truth = [t.detach().double().requires_grad_() for t in tensors]
exactly, plainly = (
    torch.autograd.grad(F.layer_norm(x + delta, (33,), weight, bias, 1e-6).sin().sum(), (x, delta, weight, bias))
    for x, delta, weight, bias in (truth, tensors)
)
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
@pytest.mark.parametrize("post_norm", [False, True])
def test_triton_kernel_compiles_without_a_gpu(arch, dtype, post_norm):
    import triton
    from seed_fast.kernels.add_layer_norm import add_layer_norm_fwd_kernel as kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {"HAS_STREAM": True, "POST_NORM": post_norm, "PADDED_D": 2048}
    kinds = dict.fromkeys(("x", "weight", "bias", "stream"), "*fp32") | dict.fromkeys(("delta", "y"), f"*{dtype}")
    kinds |= {"eps": "fp32"} | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): x for name, x in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"enable_fp_fusion": True})
    assert f".target sm_{arch}" in compiled.asm["ptx"]
