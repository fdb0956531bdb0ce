"""The CUDA kernels of nearest_code: what the compiler makes of them, and, where a GPU is, what they find.

Without a GPU the kernels themselves run in csrc/tests/nearest_code_cuda_test.cpp, which executes them on the host.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seed_fast.ops import _native, backend, nearest_code, pack_codebook

ROOT = Path(__file__).parents[2]
ARCHITECTURES = {"sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"}
KERNELS = {
    "pack_center_kernel",
    "pack_entries_kernel",
    "pack_screen_kernel",
    "nearest_code_fwd_sm70_kernel",
    "nearest_code_fwd_sm75_kernel",
    "nearest_code_finish_kernel",
    "nearest_code_fwd_rows_kernel",
    "nearest_code_finish_rows_kernel",
    "nearest_code_margin_kernel",
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.cuda_nvrtc") is None,
    reason="the CUDA compiler packages are not installed",
)


def on_gpu(test):
    reason = _native.cuda_unavailable()
    return pytest.mark.gpu(pytest.mark.skipif(bool(reason), reason=reason or "has a GPU")(test))


def compiled_kernels(out: Path, pattern: str) -> dict[str, dict[str, dict[str, int]]]:
    """{kernel: {architecture: what ptxas reports}} of csrc/cuda/`pattern`, compiled for all their architectures."""
    driver, folder = ROOT / "cmake" / "compile_device_code.py", ROOT / "csrc" / "cuda"
    folders = ["-I", folder, "-I", ROOT / "csrc" / "include"]
    command = [sys.executable, driver, "build", out, *sorted(folder.glob(pattern)), *folders]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sources = json.loads((out / "device_code.json").read_text())["sources"]
    return {name: by_arch for source in sources.values() for name, by_arch in source["kernels"].items()}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return compiled_kernels(tmp_path_factory.mktemp("device"), "nearest_code*.cu")


@needs_compiler
def test_every_kernel_compiles_for_its_architectures_without_spills(kernels):
    assert set(kernels) == KERNELS
    screens = {"nearest_code_fwd_sm70_kernel": {"sm_70"}, "nearest_code_fwd_sm75_kernel": ARCHITECTURES - {"sm_70"}}
    for name, by_arch in kernels.items():
        assert set(by_arch) == screens.get(name, ARCHITECTURES)
        for usage in by_arch.values():
            assert usage["registers"] > 0
            assert usage["spill_store_bytes"] == usage["spill_load_bytes"] == 0


@needs_compiler
@pytest.mark.parametrize(
    ("kernel", "arch"), [("sm70", "sm_70"), ("sm75", "sm_75"), ("sm75", "sm_80"), ("sm75", "sm_90")]
)
def test_a_multiprocessor_holds_the_three_blocks_that_the_screen_is_planned_for(kernels, kernel, arch):
    usage = kernels[f"nearest_code_fwd_{kernel}_kernel"][arch]
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


@pytest.fixture
def cuda():
    with backend("cuda"):
        yield


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
def test_a_captured_graph_replays_on_new_input(cuda):
    z, codebook = random_pair(32, 8192, 32)
    other, _ = random_pair(33, 1, 32)
    packed = pack_codebook(codebook)
    nearest_code(z, packed)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids = nearest_code(z, packed)
    z.copy_(other[:32])
    ids.fill_(-7)
    graph.replay()
    assert torch.equal(ids, float64_argmin(z, codebook))


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


@on_gpu
@pytest.mark.skipif(os.environ.get("SEED_FAST_CUDA_ARCH") == "70", reason="is that run")
def test_the_compute_70_image_passes_every_test_above():
    environment = os.environ | {"SEED_FAST_CUDA_ARCH": "70"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


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
