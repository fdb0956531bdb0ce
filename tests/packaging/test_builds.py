"""Every way to build and install the package, in a copy of the tree: isolated, editable, and with pieces missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.packaging.wheel_rules import ROOT, content_objections

pytestmark = pytest.mark.slow

SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
# What a build needs besides a compiler, as top-level entries of site-packages; NVIDIA's packages are not among them.
BUILD_TOOLS = ("setuptools", "_distutils_hack", "wheel", "packaging", "cmake", "ninja", "pybind11")
# Where a test asks what is built and not how fast it runs: unoptimised code compiles in two thirds of the time.
QUICK = {"CMAKE_BUILD_TYPE": "Debug", "SEED_FAST_NATIVE": "1"}
REPORT = """
import json, seed_fast, seed_fast._C as c
import seed_fast.kernels
print(json.dumps({"file": seed_fast.__file__, "kernels": seed_fast.kernels.__file__, "build": c.build_info(),
                  "cuda": c.cuda_available()}))
"""


def run(command: list[object], **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)


def environment(**changes: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SEED_FAST_")}
    return clean | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", **changes}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of this checkout without anything that was built, but for the cache of compiled device code."""
    listed = run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    copy = tmp_path / "tree"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/golden/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    cache = ROOT / "build" / "device_cache"
    if cache.is_dir():
        shutil.copytree(cache, copy / "build" / "device_cache")
    return copy


def build_wheel(tree: Path, *options: str, python: object = sys.executable, **variables: str):
    """(result of `pip wheel`, path of the wheel or None)."""
    out = tree.parent / "wheels"
    command = [python, "-m", "pip", "wheel", "-v", "--no-deps", "-w", out, *options, tree]
    result = run(command, env=environment(**variables), cwd=tree.parent)
    return result, next(iter(out.glob("*.whl")), None)


def unpack(wheel: Path) -> Path:
    target = wheel.parent.parent / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def with_dependencies(python: Path, site: Path) -> Path:
    """Lets an environment see torch and the build tools of this one; not its editable install of seed_fast."""
    (site / "dependencies.pth").write_text(f"{SITE_PACKAGES}\n")
    return python


def report(site: Path, python: Path) -> dict:
    """What the package in `site` says of itself, asked from another directory."""
    result = run([python, "-c", REPORT], env=environment(PYTHONPATH=str(site)), cwd=site.parent)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["file"].startswith(str(site))
    return answer


def fresh_environment(folder: Path, with_pip: bool = True) -> tuple[Path, Path]:
    """(python, site-packages) of a new virtual environment with nothing but pip."""
    venv.create(folder, with_pip=with_pip)
    site = next(folder.glob("lib/python*/site-packages"))
    for pattern in ("setuptools*", "pkg_resources", "_distutils_hack", "distutils-precedence.pth"):
        for entry in site.glob(pattern):  # some Pythons bring one that is too old
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return folder / "bin" / "python", site


@pytest.fixture(scope="module")
def user_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has all dependencies and no seed_fast."""
    return with_dependencies(*fresh_environment(tmp_path_factory.mktemp("user"), with_pip=False))


@pytest.fixture
def bare_python(tmp_path: Path) -> Path:
    """A Python whose environment has the build tools but no NVIDIA package (and no torch)."""
    python, site = fresh_environment(tmp_path / "bare")
    for entry in SITE_PACKAGES.iterdir():
        if entry.name.split("-")[0].lower() in BUILD_TOOLS:
            (site / entry.name).symlink_to(entry)
    return python


def test_an_isolated_build_needs_no_torch_and_works_elsewhere(tree, user_python):
    result, wheel = build_wheel(tree, SEED_FAST_NATIVE="1")
    assert result.returncode == 0, result.stderr
    lines = (result.stdout + result.stderr).splitlines()
    collected = [line.split()[1] for line in lines if line.strip().startswith("Collecting")]
    assert collected, "pip should have installed the build requirements"
    assert [name for name in collected if name.startswith("torch")] == []
    assert content_objections(wheel) == []
    answer = report(unpack(wheel), user_python)
    assert answer["kernels"].endswith("seed_fast/kernels/__init__.py")
    if sys.platform == "linux":
        assert answer["build"]["cuda"]["embedded"]


def test_an_editable_install_runs_the_sources_in_place(tree):
    python = with_dependencies(*fresh_environment(tree.parent / "venv"))
    command = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", tree]
    result = run(command, env=environment(**QUICK), cwd=tree.parent)
    assert result.returncode == 0, result.stderr + result.stdout
    result = run([python, "-c", REPORT], env=environment(), cwd=tree.parent)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["file"] == str(tree / "seed_fast" / "__init__.py")
    assert answer["kernels"] == str(tree / "kernels" / "triton_ops" / "__init__.py")

    (tree / "kernels" / "triton_ops" / "added_later.py").write_text("here = True\n")
    result = run([python, "-c", "from seed_fast.kernels import added_later as a; print(a.here)"], cwd=tree.parent)
    assert result.stdout.strip() == "True", result.stderr


def test_cuda_switched_off_is_said(tree, user_python):
    result, wheel = build_wheel(tree, "--no-build-isolation", SEED_FAST_CUDA="0", **QUICK)
    assert result.returncode == 0, result.stdout
    answer = report(unpack(wheel), user_python)
    assert answer["build"]["cuda"] == {"embedded": False, "reason": "switched off (SEED_FAST_CUDA=0)"}
    assert answer["cuda"][0] is False
    assert "switched off" in answer["cuda"][1]


@pytest.mark.skipif(sys.platform != "linux", reason="CUDA is built on Linux only")
def test_missing_cuda_packages_are_named_and_the_rest_is_built(tree, bare_python, user_python):
    options = {"python": bare_python, **QUICK}
    result, wheel = build_wheel(tree, "--no-build-isolation", **options)
    assert result.returncode == 0, result.stdout
    cuda = report(unpack(wheel), user_python)["build"]["cuda"]
    assert cuda["embedded"] is False
    assert "missing packages: nvidia-cuda-nvrtc-cu12 (device compiler)" in cuda["reason"]

    result, _ = build_wheel(tree, "--no-build-isolation", SEED_FAST_CUDA="1", **options)
    assert result.returncode != 0
    assert "SEED_FAST_CUDA=1, but: missing packages" in result.stdout + result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="CUDA is built on Linux only")
def test_prebuilt_device_code_needs_no_device_compiler(tree, bare_python, user_python):
    if not (SITE_PACKAGES / "nvidia" / "cuda_nvrtc").is_dir():
        pytest.skip("the CUDA compiler packages are not installed")
    driver, archive = tree / "cmake" / "compile_device_code.py", tree.parent / "device.fatbin"
    sources = sorted((tree / "csrc" / "cuda").glob("*.cu"))
    folders = ["-I", tree / "csrc" / "include", "-I", tree / "csrc" / "cuda"]
    cache = ["--cache", tree / "build" / "device_cache"]
    result = run([sys.executable, driver, "build", tree.parent / "device", *sources, *folders, *cache])
    assert result.returncode == 0, result.stderr
    assert run([sys.executable, driver, "archive", tree.parent / "device", archive]).returncode == 0

    site = next(bare_python.parents[1].glob("lib/python*/site-packages"))
    (site / "nvidia").mkdir()
    for package in ("cuda_runtime", "cuda_nvcc"):  # the host half alone
        (site / "nvidia" / package).symlink_to(SITE_PACKAGES / "nvidia" / package)
        (info,) = SITE_PACKAGES.glob(f"nvidia_{package}_cu12-*.dist-info")
        (site / info.name).symlink_to(info)
    options = {"python": bare_python, "SEED_FAST_CUDA": "1", "SEED_FAST_FATBIN": str(archive), **QUICK}
    result, wheel = build_wheel(tree, "--no-build-isolation", **options)
    assert result.returncode == 0, result.stdout + result.stderr
    cuda = report(unpack(wheel), user_python)["build"]["cuda"]
    assert cuda["embedded"] is True
    assert set(cuda["device_code"]["sources"]) == {source.stem for source in sources}


def test_without_a_compiler_it_installs_as_pure_python_and_says_why(tree, user_python):
    broken = {"CXX": "/nonexistent/c++"}
    result, wheel = build_wheel(tree, "--no-build-isolation", **broken)
    assert result.returncode == 0, result.stdout
    site = unpack(wheel)
    result = run([user_python, "-m", "seed_fast.info"], env=environment(PYTHONPATH=str(site)), cwd=site.parent)
    assert "it could not be built at installation: cmake failed" in result.stdout, result.stderr
    assert "/nonexistent/c++" in result.stdout

    result, _ = build_wheel(tree, "--no-build-isolation", SEED_FAST_NATIVE="1", **broken)
    assert result.returncode != 0
    assert "the compiled module could not be built" in result.stdout + result.stderr


def test_a_pure_wheel_is_for_every_platform(tree):
    result, wheel = build_wheel(tree, "--no-build-isolation", SEED_FAST_NATIVE="0")
    assert result.returncode == 0, result.stdout
    assert wheel.name.endswith("-py3-none-any.whl")
    assert content_objections(wheel) == []
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if name.endswith((".so", ".txt")) and "_C" in name] == []


def test_an_unknown_setting_is_refused(tree):
    result, _ = build_wheel(tree, "--no-build-isolation", SEED_FAST_NATIVE="yes")
    assert result.returncode != 0
    assert "SEED_FAST_NATIVE: expected auto, 0 or 1, got 'yes'" in result.stdout + result.stderr
