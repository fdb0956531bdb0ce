"""The pieces of CUDA 12.9 that come from PyPI: where they are, and the two libraries the build calls through ctypes.

CUDA 12.9 is the last toolkit that targets sm_70, and no nvcc of it can be pip-installed; NVRTC and nvFatbin can.
"""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

# Package -> what the build takes from it.
PACKAGES = {
    "nvidia-cuda-nvrtc-cu12": "device compiler",
    "nvidia-nvfatbin-cu12": "packs the images of all architectures",
    "nvidia-cuda-runtime-cu12": "headers and libcudart_static.a",
    "nvidia-cuda-nvcc-cu12": "crt headers",
    "nvidia-cuda-cccl-cu12": "nv/target",
}


# On every compilation for sm_70, and no option turns it off. Volta is why this compiler is used.
_VOLTA_WARNING = "nvrtc: warning: Architectures prior to '<compute/sm>_75' are deprecated"


class CompileError(Exception):
    """NVRTC or nvFatbin refused; the text is what it said."""


@dataclass(frozen=True)
class Toolkit:
    """Folders and versions of the CUDA packages found in this Python environment."""

    versions: dict[str, str]
    missing: dict[str, str]

    @classmethod
    def find(cls) -> Toolkit:
        versions, missing = {}, {}
        for name, role in PACKAGES.items():
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                missing[name] = role
        return cls(versions, missing)

    @staticmethod
    def _folder(package: str, folder: str) -> Path:
        return Path(str(metadata.distribution(package).locate_file(folder))).resolve()

    @property
    def host_include_dirs(self) -> list[Path]:
        """What host launchers include; needs the runtime and nvcc packages."""
        return [
            self._folder("nvidia-cuda-runtime-cu12", "nvidia/cuda_runtime/include"),
            self._folder("nvidia-cuda-nvcc-cu12", "nvidia/cuda_nvcc/include"),
        ]

    @property
    def include_dirs(self) -> list[Path]:
        """What device code may include; needs all packages."""
        return [*self.host_include_dirs, self._folder("nvidia-cuda-cccl-cu12", "nvidia/cuda_cccl/include")]

    @property
    def cudart_static(self) -> Path:
        return self._folder("nvidia-cuda-runtime-cu12", "nvidia/cuda_runtime/lib") / "libcudart_static.a"

    def has_host_half(self) -> bool:
        """True if launchers can be compiled and linked with these packages."""
        return not {"nvidia-cuda-runtime-cu12", "nvidia-cuda-nvcc-cu12"} & set(self.missing)

    @property
    def nvrtc(self) -> Path:
        return self._folder("nvidia-cuda-nvrtc-cu12", "nvidia/cuda_nvrtc/lib") / "libnvrtc.so.12"

    @property
    def nvfatbin(self) -> Path:
        return self._folder("nvidia-nvfatbin-cu12", "nvidia/nvfatbin/lib") / "libnvfatbin.so.12"

    def objection(self) -> str:
        """Why device code cannot be compiled here, or ""."""
        if not supported_platform():
            return f"CUDA is built on Linux x86-64 only, this is {sys.platform} {platform.machine()}"
        if self.missing:
            return "missing packages: " + ", ".join(f"{name} ({role})" for name, role in self.missing.items())
        return ""


def supported_platform() -> bool:
    """Return True if NVIDIA's packages exist for this machine."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


@dataclass(frozen=True)
class Compiled:
    """One source for one architecture."""

    cubin: bytes
    ptx: bytes
    log: str


def compile_source(source: Path, arch: int, include_dirs: list[Path], nvrtc_path: Path, options: list[str]) -> Compiled:
    """Compile one .cu with NVRTC to the cubin of sm_`arch` and the PTX that it came from.

    Raises:
        CompileError: the compiler's log.
    """
    nvrtc = ctypes.CDLL(str(nvrtc_path))
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    program = ctypes.c_void_p()

    def check(result: int, what: str) -> None:
        if result:
            raise CompileError(f"{what}: {nvrtc.nvrtcGetErrorString(result).decode()}")

    def fetch(what: str) -> bytes:
        size = ctypes.c_size_t()
        check(getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what)
        buffer = ctypes.create_string_buffer(size.value)
        check(getattr(nvrtc, f"nvrtcGet{what}")(program, buffer), what)
        return buffer.raw

    text = source.read_bytes()
    check(
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, str(source).encode(), 0, None, None),
        "nvrtcCreateProgram",
    )
    try:
        flags = [f"--gpu-architecture=sm_{arch}", *options, *(f"-I{folder}" for folder in include_dirs)]
        array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        result = nvrtc.nvrtcCompileProgram(program, len(flags), array)
        lines = fetch("ProgramLog").rstrip(b"\0").decode(errors="replace").splitlines()
        log = "\n".join(line for line in lines if not line.startswith(_VOLTA_WARNING))
        if result:
            raise CompileError(log or nvrtc.nvrtcGetErrorString(result).decode())
        return Compiled(cubin=fetch("CUBIN"), ptx=fetch("PTX"), log=log)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def nvrtc_version(nvrtc_path: Path) -> str:
    """Version that the library itself reports, such as "12.9"."""
    nvrtc = ctypes.CDLL(str(nvrtc_path))
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def pack_fatbin(cubins: dict[int, bytes], ptx: dict[int, bytes], name: str, nvfatbin_path: Path) -> bytes:
    """One fat binary from cubins and PTX by architecture.

    Raises:
        CompileError: nvFatbin refused.
    """
    library = ctypes.CDLL(str(nvfatbin_path))
    library.nvFatbinGetErrorString.restype = ctypes.c_char_p
    handle = ctypes.c_void_p()

    def check(result: int, what: str) -> None:
        if result:
            raise CompileError(f"{what} of {name}: {library.nvFatbinGetErrorString(result).decode()}")

    options = (ctypes.c_char_p * 3)(b"-64", b"-cuda", b"-host=linux")
    check(library.nvFatbinCreate(ctypes.byref(handle), options, ctypes.c_size_t(len(options))), "nvFatbinCreate")
    try:
        for arch, image in sorted(cubins.items()):
            size = ctypes.c_size_t(len(image))
            check(library.nvFatbinAddCubin(handle, image, size, str(arch).encode(), name.encode()), f"sm_{arch}")
        for arch, text in sorted(ptx.items()):
            size = ctypes.c_size_t(len(text))
            check(library.nvFatbinAddPTX(handle, text, size, str(arch).encode(), name.encode(), b""), f"compute_{arch}")
        total = ctypes.c_size_t()
        check(library.nvFatbinSize(handle, ctypes.byref(total)), "nvFatbinSize")
        buffer = ctypes.create_string_buffer(total.value)
        check(library.nvFatbinGet(handle, buffer), "nvFatbinGet")
        return buffer.raw
    finally:
        library.nvFatbinDestroy(ctypes.byref(handle))


_ENTRY = re.compile(rb"^\.visible \.entry ([A-Za-z_]\w*)\s*\(", re.MULTILINE)


def kernel_names(ptx: bytes) -> list[str]:
    """Names of the kernels in a PTX text."""
    return sorted(name.decode() for name in _ENTRY.findall(ptx))


_FUNCTION = re.compile(r"Compiling entry function '(\w+)' for '\w+'(.*?)(?=Compiling entry function|\Z)", re.DOTALL)


def resource_usage(log: str) -> dict[str, dict[str, int]]:
    """Per kernel what ptxas reports: registers, static shared memory [bytes], spills [bytes]."""
    usage = {}
    for name, text in _FUNCTION.findall(log):
        numbers = {
            "registers": re.search(r"Used (\d+) registers", text),
            "shared_bytes": re.search(r"(\d+) bytes smem", text),
            "spill_store_bytes": re.search(r"(\d+) bytes spill stores", text),
            "spill_load_bytes": re.search(r"(\d+) bytes spill loads", text),
        }
        usage[name] = {key: int(match.group(1)) if match else 0 for key, match in numbers.items()}
    return usage
