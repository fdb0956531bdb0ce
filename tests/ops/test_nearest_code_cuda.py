"""The CUDA kernels of nearest_code: what the compiler makes of them, and, where a GPU is, what they find.

Without a GPU the kernels themselves run in csrc/tests/nearest_code_cuda_test.cpp, which executes them on the host.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seed_fast.ops import nearest_code, pack_codebook
from tests.ops.contract import DTYPES, ROOT, compiled_kernels, needs_compiler, on_gpu


@needs_compiler
@pytest.mark.parametrize(
    ("kernel", "arch"), [("sm70", "sm_70"), ("sm75", "sm_75"), ("sm75", "sm_80"), ("sm75", "sm_90")]
)
def test_a_multiprocessor_holds_the_three_blocks_that_the_screen_is_planned_for(kernel, arch):
    usage = compiled_kernels("nearest_code*.cu")[f"nearest_code_fwd_{kernel}_kernel"][arch]
    allocated_per_warp = math.ceil(usage["registers"] / 8) * 8 * 32  # registers are handed out in units of 8 a thread
    assert 3 * 4 * allocated_per_warp <= 65536
    assert 3 * usage["shared_bytes"] <= 64 << 10


def float64_argmin(z, codebook):
    """Independent of `reference`: no GEMM, so that equal entries get equal scores."""
    z, codebook = z.double(), codebook.double()
    return torch.stack([(codebook.square() - 2 * row * codebook).sum(1).argmin() for row in z])


def random_pair(n, k, d, z_dtype=torch.float32, codebook_dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(1009 * n + 31 * k + d)
    z, codebook = (torch.randn(rows, d, generator=generator) * scale for rows in (n, k))
    return z.to("cuda", z_dtype), codebook.to("cuda", codebook_dtype)


@on_gpu
@pytest.mark.parametrize(
    ("n", "k", "d"),
    [(1, 1, 1), (31, 300, 31), (32, 8192, 32), (33, 129, 33), (257, 8192, 32), (70, 1000, 256), (3000, 128, 8)],
)
@pytest.mark.parametrize("z_dtype", DTYPES)
@pytest.mark.parametrize("codebook_dtype", DTYPES)
def test_ids_equal_the_float64_argmin(cuda, n, k, d, z_dtype, codebook_dtype):
    z, codebook = random_pair(n, k, d, z_dtype, codebook_dtype)
    expected = float64_argmin(z, codebook)
    assert torch.equal(nearest_code(z, codebook), expected)
    assert torch.equal(nearest_code(z, pack_codebook(codebook)), expected)


@on_gpu
@pytest.mark.parametrize("scale", [1e-40, 2e-23, 1e-10, 1e10, 1e18])
def test_ids_hold_from_subnormal_to_huge_magnitudes(cuda, scale):
    z, codebook = random_pair(64, 500, 32, scale=scale)
    assert torch.equal(nearest_code(z, codebook), float64_argmin(z, codebook))


@on_gpu
def test_margin_is_the_gap_to_the_second_best(cuda):
    z, codebook = random_pair(600, 300, 32)
    ids, margin = nearest_code(z, codebook, return_margin=True)
    scores = (codebook.double().square() - 2 * z.double()[:, None] * codebook.double()).sum(-1)
    best = scores.topk(2, largest=False).values
    gap = best[:, 1] - best[:, 0]
    # To the last bit or two of float32; what float64 makes of the sums is off by less than the rest.
    assert ((margin - gap).abs() <= gap / 2**22 + 2**-40).all()
    assert torch.equal(ids, scores.argmin(1))


@on_gpu
def test_duplicated_and_collapsed_codebooks_stay_exact(cuda):
    z, codebook = random_pair(100, 400, 32)
    duplicated = torch.cat([codebook, codebook.flip(0)])
    assert torch.equal(nearest_code(z, duplicated), float64_argmin(z, codebook))
    steps = torch.randint(-1, 2, codebook.shape, generator=torch.Generator().manual_seed(1)).cuda()
    collapsed = (codebook[:1].view(torch.int32) + steps.int()).view(torch.float32)
    assert torch.equal(nearest_code(z, collapsed), float64_argmin(z, collapsed))


@on_gpu
def test_strided_rows_and_columns(cuda):
    wide, codebook = random_pair(300, 500, 64)
    for z in (wide[:, 16:48], wide[::3, :32], wide[:, ::2], wide[:1, :32].expand(40, 32)):
        for entries in (codebook[:, :32], codebook[::2, ::2]):
            assert torch.equal(nearest_code(z, entries), float64_argmin(z, entries))


@on_gpu
def test_rows_without_a_finite_norm_get_no_id(cuda):
    z, codebook = random_pair(70, 200, 32)
    expected = float64_argmin(z, codebook)
    z[3, 5], z[40, 31], z[69, 0] = math.nan, math.inf, 2.0**64
    ids, margin = nearest_code(z, codebook, return_margin=True)
    bad = torch.zeros(70, dtype=torch.bool, device="cuda")
    bad[[3, 40, 69]] = True
    assert torch.equal(ids, expected.where(~bad, -1))
    assert torch.equal(margin.isnan(), bad)


@on_gpu
def test_memory_stays_linear_in_rows_and_codes(cuda):
    z, codebook = random_pair(65536, 8192, 32)
    nearest_code(z[:32], codebook)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ids = nearest_code(z, codebook)
    extra = torch.cuda.max_memory_allocated() - before
    assert extra <= 64 * len(z) + 2 * codebook.nbytes  # the [N, K] of float32 scores would be 2 GiB
    assert torch.equal(ids[::997], float64_argmin(z[::997], codebook))


@pytest.mark.slow
def test_kernels_on_the_host_have_the_exact_answer_for_minutes():
    program, cmake = "nearest_code_cuda_fuzz_test", Path(sys.executable).with_name("cmake")
    for step in (["--preset", "asan"], ["--build", "--preset", "asan", "--target", program]):
        built = subprocess.run([cmake, *step], cwd=ROOT, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    seed = str(int.from_bytes(os.urandom(3), "little"))
    command = [ROOT / "build" / "asan" / program, seed, os.environ.get("FUZZ_SECONDS", "120")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
