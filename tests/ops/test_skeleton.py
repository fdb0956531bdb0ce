"""The op that contributors copy, examples/skeleton_op: it compiles, and its own tests pass."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.ops.contract import ROOT, needs_native

SKELETON = ROOT / "examples" / "skeleton_op"
MODULE = """
#include <pybind11/pybind11.h>
namespace seed_fast { void bind_relu_squared(pybind11::module_&); }
PYBIND11_MODULE(relu_squared_module, m) { seed_fast::bind_relu_squared(m); }
"""
# Its files as if they lay where they will be copied to.
CONFTEST = """
import relu_squared_module
import seed_fast._C, seed_fast.kernels, seed_fast.ops.backends
seed_fast._C.relu_squared_cpu = relu_squared_module.relu_squared_cpu
seed_fast.ops.__path__.append("{skeleton}/seed_fast/ops")
seed_fast.ops.backends.__path__.append("{skeleton}/seed_fast/ops/backends")
seed_fast.kernels.__path__.append("{skeleton}/kernels/triton_ops")
"""


def compiled(folder: Path) -> None:
    """Build the C++ half as a module of its own, beside the headers of this repository."""
    compiler = shutil.which("c++")
    pybind11 = pytest.importorskip("pybind11")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    (folder / "module.cpp").write_text(MODULE)
    sources = [folder / "module.cpp", *SKELETON.glob("csrc/**/*.cpp"), ROOT / "csrc" / "cpu" / "thread_pool.cpp"]
    includes = [ROOT / "csrc" / "include", ROOT / "csrc" / "cpu", SKELETON / "csrc" / "include", pybind11.get_include()]
    includes.append(sysconfig.get_path("include"))
    flags = ["-shared", "-fPIC", "-O1", "-std=c++17", "-pthread", "-Wall", "-Wextra", "-Werror"]
    command = [compiler, *flags, *(f"-I{path}" for path in includes), *sources, "-o", folder / "relu_squared_module.so"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@needs_native
def test_the_skeleton_compiles_and_passes_its_own_tests(tmp_path):
    compiled(tmp_path)
    (tmp_path / "conftest.py").write_text(CONFTEST.format(skeleton=SKELETON))
    shutil.copy(SKELETON / "tests" / "ops" / "test_relu_squared.py", tmp_path)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
    done = subprocess.run([*map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout, done.stdout
