"""The CUDA kernels of bias_gelu: what the compiler makes of them, and, where a GPU is, values and gradients.

Without a GPU the kernels themselves run in csrc/tests/bias_gelu_cuda_test.cpp, which executes them on the host.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from seed_fast.ops import backend, bias_gelu
from seed_fast.testing import check_budget
from tests.ops.test_bias_gelu import exact
from tests.ops.test_nearest_code_cuda import ARCHITECTURES, ROOT, compiled_kernels, needs_compiler, on_gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KERNELS = {f"bias_gelu_{kind}_kernel" for kind in ("float32", "float16", "bfloat16", "any")}
SHAPES = [(1, 1), (3, 32), (5, 31), (64, 96), (32, 3072), (257, 6144), (16448, 6144), (70001, 40)]


@needs_compiler
def test_every_kernel_compiles_for_every_architecture_without_spills(tmp_path):
    kernels = compiled_kernels(tmp_path, "bias_gelu*.cu")
    assert set(kernels) == KERNELS
    for by_arch in kernels.values():
        assert set(by_arch) == ARCHITECTURES
        assert all(use["spill_store_bytes"] == use["spill_load_bytes"] == 0 for use in by_arch.values())


@pytest.fixture
def cuda():
    with backend("cuda"):
        yield


def draw(n, d, dtype=torch.float32):
    generator = torch.Generator().manual_seed(31 * n + d)
    return [torch.randn(*size, generator=generator).to("cuda", dtype) for size in ((n, d), (d,))]


def check(x, bias):
    torch.empty(x.numel(), device="cuda").fill_(math.nan)  # what the allocator hands out next is no old result
    check_budget(bias_gelu(x, bias), exact(x, bias), F.gelu(x + bias).to(x.dtype))


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_within_twice_that_of_plain_torch(cuda, shape, dtype):
    check(*draw(*shape, dtype))


@on_gpu
def test_unaligned_rows_and_other_dtypes(cuda):
    x, bias = draw(9, 1412)
    for dtype in DTYPES:
        check(x.to(dtype), bias.half())
    check(x[:, 1:1409], bias[3:1411])


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_gives_the_same(cuda, dtype):
    x, bias = draw(300, 6144, dtype)
    expected = bias_gelu(x, bias)
    assert torch.equal(bias_gelu(x, bias, inplace=True), expected)


@on_gpu
def test_small_results_are_as_precise_as_large_ones(cuda):
    x, bias = torch.linspace(-13, 13, 4001, device="cuda")[None], torch.zeros(4001, device="cuda")
    true = exact(x, bias)
    allowed = (16 + x.double() ** 2) * 2**-24 * true.abs() + 2**-125
    assert ((bias_gelu(x, bias).double() - true).abs() <= allowed).all()


@on_gpu
def test_gradients_are_those_of_the_definition(cuda):
    tensors = [t.requires_grad_() for t in draw(64, 768)]
    truth = [t.detach().double().requires_grad_() for t in tensors]
    got = torch.autograd.grad(bias_gelu(*tensors).sin().sum(), tensors)
    exactly, plainly = (torch.autograd.grad(F.gelu(x + bias).sin().sum(), (x, bias)) for x, bias in (truth, tensors))
    for each in zip(got, exactly, plainly, strict=True):
        check_budget(*each, factor=3)


@on_gpu
def test_opcheck_and_one_graph_under_compile(cuda):
    x, bias = draw(5, 96)
    torch.library.opcheck(torch.ops.seed_fast.bias_gelu.default, (x, bias))
    torch.library.opcheck(torch.ops.seed_fast.bias_gelu_.default, (x.clone(), bias))
    compiled = torch.compile(bias_gelu, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, bias), bias_gelu(x, bias))


@on_gpu
def test_a_captured_graph_replays_on_new_input(cuda):
    x, bias = draw(64, 6144, torch.float16)
    bias_gelu(x, bias)  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = bias_gelu(x, bias)
    x.copy_(x.flip(0))
    graph.replay()
    assert torch.equal(captured, bias_gelu(x, bias))


@on_gpu
@pytest.mark.skipif(os.environ.get("SEED_FAST_CUDA_ARCH") == "70", reason="is that run")
def test_the_compute_70_image_passes_every_test_above():
    environment = os.environ | {"SEED_FAST_CUDA_ARCH": "70"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
