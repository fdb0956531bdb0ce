"""Builds the compiled module seed_fast._C with CMake. Everything else about the package is in pyproject.toml.

The module is optional: where it cannot be built the package installs as pure Python, and the reason is kept in
seed_fast/_native_build_failure.txt for `seed-fast info`. SEED_FAST_NATIVE=1 makes that an error.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
FAILURE = "_native_build_failure.txt"


def _load_env():
    spec = importlib.util.spec_from_file_location("_env", ROOT / "seed_fast" / "_env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_env = _load_env()


class NativeBuildError(Exception):
    """Why the compiled module could not be built, in one line."""


def _tool(package: str, folder_attribute: str) -> str:
    """Path of a build tool: the one of the Python package, which is pinned, before one on PATH."""
    name = package + (".exe" if os.name == "nt" else "")
    try:
        found = Path(getattr(importlib.import_module(package), folder_attribute)) / name
        if found.is_file():
            return str(found)
    except (ImportError, AttributeError):
        pass  # not installed as a package, or as one that is laid out differently
    on_path = shutil.which(package)
    if on_path is None:
        raise NativeBuildError(f"{package} is not installed")
    return on_path


def _run(command: list[str]) -> None:
    """Run a build step; its output goes to the build log, and the line that says what failed into the error."""
    tail: deque[str] = deque(maxlen=60)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            sys.stdout.write(line)
            tail.append(line.strip())
    if process.returncode:
        raise NativeBuildError(f"{Path(command[0]).name} failed: {_telling_line(list(tail))}")


def _telling_line(lines: list[str]) -> str:
    """What went wrong, from the end of a build log."""
    for index, line in enumerate(lines):
        if line.startswith("CMake Error"):  # this line says where, the next ones say what
            return " ".join(filter(None, lines[index + 1 : index + 6]))
        if "error" in line.lower():
            return line
    return lines[-1] if lines else "no output"


def _zig() -> str:
    try:
        import ziglang
    except ImportError as error:
        raise NativeBuildError("SEED_FAST_ZIG=1 needs the package ziglang") from error
    return str(Path(ziglang.__file__).parent / "zig")


class CMakeBuild(build_ext):
    """Builds the one extension with CMake and ninja."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        failure = target.with_name(FAILURE)
        failure.unlink(missing_ok=True)
        try:
            built = self._build()
        except NativeBuildError as error:
            if _env.get("SEED_FAST_NATIVE") == "1":
                raise SystemExit(f"seed_fast: the compiled module could not be built: {error}") from None
            target.parent.mkdir(parents=True, exist_ok=True)
            failure.write_text(f"{error}\n")
            self.warn(f"seed_fast is installed as pure Python, the compiled module could not be built: {error}")
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(built, target)

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        source, copied = Path(self.build_lib) / "seed_fast" / FAILURE, ROOT / "seed_fast" / FAILURE
        copied.unlink(missing_ok=True)
        if source.is_file():
            shutil.copy2(source, copied)

    def _build(self) -> Path:
        use_zig = _env.get("SEED_FAST_ZIG") == "1"
        kind = f"{sys.implementation.cache_tag}-{'zig' if use_zig else 'default'}"
        build = ROOT / "build" / kind
        cmake = _tool("cmake", "CMAKE_BIN_DIR")
        configure = [
            *(cmake, "--fresh", "-G", "Ninja", "-S", str(ROOT), "-B", str(build)),
            f"-DCMAKE_MAKE_PROGRAM={_tool('ninja', 'BIN_DIR')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DSEED_FAST_CUDA={_env.get('SEED_FAST_CUDA')}",
            f"-DSEED_FAST_FATBIN={_env.get('SEED_FAST_FATBIN')}",
            f"-DSEED_FAST_DEVICE_CACHE={ROOT / 'build' / 'device_cache'}",
        ]
        if use_zig:
            configure += [f"-DSEED_FAST_ZIG={_zig()}", f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cmake' / 'zig.cmake'}"]
        _run(configure)
        _run([cmake, "--build", str(build), "--target", "_C"])
        built = list(build.glob("_C*.so")) + list(build.glob("_C*.pyd"))
        if len(built) != 1:
            raise NativeBuildError(f"expected one module in {build}, got {[path.name for path in built]}")
        return built[0]


def _packages() -> dict[str, object]:
    # kernels/triton_ops is installed as seed_fast.kernels: a package named `kernels` would shadow Hugging Face's.
    inside = find_packages("kernels/triton_ops")
    return {
        "packages": [
            *find_packages(include=["seed_fast", "seed_fast.*"]),
            "seed_fast.kernels",
            *(f"seed_fast.kernels.{name}" for name in inside),
        ],
        "package_dir": {"seed_fast.kernels": "kernels/triton_ops"},
    }


wanted = _env.get("SEED_FAST_NATIVE")
if wanted not in ("auto", "0", "1"):
    raise SystemExit(f"SEED_FAST_NATIVE: expected auto, 0 or 1, got {wanted!r}")
setup(
    **_packages(),
    # optional: an editable install then does not insist on copying a module that could not be built
    ext_modules=[] if wanted == "0" else [Extension("seed_fast._C", sources=[], optional=wanted == "auto")],
    cmdclass={"build_ext": CMakeBuild},
)
