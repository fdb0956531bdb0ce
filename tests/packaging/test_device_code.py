"""The device-code compile driver, as CMake calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.packaging.binary import embedded_images
from tests.packaging.wheel_rules import NATIVE, ROOT

DRIVER = ROOT / "cmake" / "compile_device_code.py"
KERNEL = """
#include "twice.h"
extern "C" __global__ void {name}(float* out) {{ out[threadIdx.x] = twice(threadIdx.x); }}
"""
HEADER = "__device__ inline float twice(float x) {{ return {factor} * x; }}\n"


def _has_compiler() -> bool:
    try:
        return bool(metadata.version("nvidia-cuda-nvrtc-cu12") and metadata.version("nvidia-nvfatbin-cu12"))
    except metadata.PackageNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not _has_compiler(), reason="the CUDA compiler packages are not installed")


def drive(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DRIVER), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "twice.h").write_text(HEADER.format(factor=2))
    path = tmp_path / "double_it.cu"
    path.write_text(KERNEL.format(name="double_it_kernel"))
    return path


def test_a_source_becomes_one_image_for_all_and_one_of_volta_ptx_alone(source, tmp_path):
    out = tmp_path / "out"
    assert drive("build", out, source).returncode == 0
    assert set(*embedded_images((out / "double_it.fatbin").read_bytes())) == NATIVE
    assert embedded_images((out / "double_it.compute_70.fatbin").read_bytes()) == [["compute_70"]]
    manifest = json.loads((out / "device_code.json").read_text())
    assert list(manifest["sources"]["double_it"]["kernels"]) == ["double_it_kernel"]
    usage = manifest["sources"]["double_it"]["kernels"]["double_it_kernel"]["sm_70"]
    assert usage["registers"] > 0
    assert usage["spill_store_bytes"] == 0


def test_a_second_build_changes_no_file_and_a_changed_header_does(source, tmp_path):
    out = tmp_path / "out"
    embedding = out / "device_code.cpp"
    drive("build", out, source)
    first = embedding.stat().st_mtime_ns
    drive("build", out, source)
    assert embedding.stat().st_mtime_ns == first
    (tmp_path / "twice.h").write_text(HEADER.format(factor=3))
    drive("build", out, source)
    assert embedding.stat().st_mtime_ns > first


def test_a_compile_error_names_file_line_and_architectures(source, tmp_path):
    source.write_text(KERNEL.format(name="k") + "\n__device__ int broken() { return nowhere; }\n")
    result = drive("build", tmp_path / "out", source)
    assert result.returncode == 1
    assert 'double_it.cu(5): error: identifier "nowhere" is undefined' in result.stderr
    assert "sm_70, sm_75" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "device_code.cpp").exists()


def test_one_kernel_name_in_two_sources_is_refused(source, tmp_path):
    other = tmp_path / "other.cu"
    other.write_text(source.read_text())
    result = drive("build", tmp_path / "out", source, other)
    assert result.returncode == 1
    assert "kernel 'double_it_kernel' is in double_it.cu and other.cu" in result.stderr


def test_an_archive_embeds_the_same_bytes_without_a_compiler(source, tmp_path):
    first, second, archive = tmp_path / "first", tmp_path / "second", tmp_path / "device.fatbin"
    drive("build", first, source)
    assert drive("archive", first, archive).returncode == 0
    assert drive("build", second, source, "--prebuilt", archive).returncode == 0
    assert not (second / "cache").exists()
    for name in ("double_it.fatbin", "double_it.compute_70.fatbin", "device_code.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_an_archive_of_other_sources_is_refused(source, tmp_path):
    archive = tmp_path / "device.fatbin"
    drive("build", tmp_path / "first", source)
    drive("archive", tmp_path / "first", archive)
    (tmp_path / "twice.h").write_text(HEADER.format(factor=3))
    result = drive("build", tmp_path / "second", source, "--prebuilt", archive)
    assert result.returncode == 1
    assert "was made from other sources (see double_it)" in result.stderr


@pytest.mark.parametrize("content", [b"", b"not a zip"])
def test_a_file_that_is_no_archive_is_named(source, tmp_path, content):
    archive = tmp_path / "device.fatbin"
    archive.write_bytes(content)
    result = drive("build", tmp_path / "out", source, "--prebuilt", archive)
    assert result.returncode == 1
    assert f"SEED_FAST_FATBIN={archive} is not an archive" in result.stderr


def test_a_source_may_name_the_architectures_that_it_is_for(tmp_path):
    volta = tmp_path / "some_sm70.cu"
    volta.write_text('// architectures: 70 75\nextern "C" __global__ void some_kernel(float* out) { *out = 1; }\n')
    done = drive("build", tmp_path / "out", volta, "--cache", tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "device_code.json").read_text())
    assert set(manifest["sources"]["some_sm70"]["kernels"]["some_kernel"]) == {"sm_70", "sm_75"}
    volta.write_text("// architectures: 71\n")
    done = drive("build", tmp_path / "out", volta, "--cache", tmp_path / "cache")
    assert done.returncode != 0
    assert "some_sm70.cu: architectures must be among" in done.stderr
