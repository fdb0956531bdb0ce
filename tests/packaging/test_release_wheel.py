"""What the release compiler makes: the wheel of `make wheel`, the rules it keeps, and the C++ on another processor."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging.test_builds import tree  # noqa: F401  (the fixture)
from tests.packaging.wheel_rules import ROOT, release_objections

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or shutil.which("make") is None, reason="release wheels: Linux and make"
    ),
]


@pytest.fixture
def release_wheel(tree: Path) -> Path:  # noqa: F811
    command = ["make", "-C", str(tree), "dist-wheel", f"VENV={sys.prefix}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    return wheel


def test_it_keeps_all_rules_and_the_rules_see_a_broken_one(release_wheel, tmp_path):
    assert release_objections(release_wheel) == []

    broken = tmp_path / release_wheel.name.replace("manylinux_2_28", "linux")
    with zipfile.ZipFile(release_wheel) as good, zipfile.ZipFile(broken, "w") as bad:
        for name in good.namelist():
            if not name.startswith("seed_fast/kernels/"):
                bad.writestr(name, good.read(name))
        bad.writestr("kernels/__init__.py", "")
    objections = release_objections(broken)
    assert "it is not tagged manylinux_2_28_x86_64 alone" in objections
    assert "seed_fast/kernels/__init__.py is missing" in objections
    assert "it installs kernels at top level" in objections


def test_the_portable_cpu_sources_compile_for_aarch64(tmp_path):
    pytest.importorskip("ziglang")
    folder = ROOT / "csrc" / "cpu"
    sources = [path for path in folder.glob("*.cpp") if "_avx" not in path.name]
    assert sources
    flags = ["-target", "aarch64-linux-gnu.2.28", "-std=c++17", "-O3", "-Wall", "-Wextra"]
    flags += ["-I", ROOT / "csrc/include", "-I", ROOT / "csrc/cuda"]  # as CMakeLists.txt has them
    for source in sources:
        command = [sys.executable, "-m", "ziglang", "c++", *flags, "-I", folder, "-c", source, "-o", tmp_path / "x.o"]
        result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
