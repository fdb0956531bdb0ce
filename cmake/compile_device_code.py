"""Compiles csrc/cuda/*.cu into fat binaries and the C++ file that embeds them. CMake runs it; so can you.

    compile_device_code.py probe                          what CUDA this environment has, as JSON
    compile_device_code.py build OUT SOURCE... [-I DIR]   OUT/device_code.cpp, OUT/device_code.json and the images
    compile_device_code.py archive OUT ARCHIVE            one file of what `build` left in OUT, for SEED_FAST_FATBIN
    compile_device_code.py ptx OUT SOURCE... [-I DIR]     OUT/<name>.compute_<arch>.ptx, for the tests that interpret it

Each source becomes two images. `<name>.fatbin` holds a cubin for every architecture below, and PTX for GPUs that are
newer than all of them. `<name>.compute_70.fatbin` holds nothing but the compute_70 PTX: next to a native cubin the
driver would never pick it, and it is how the Volta code is run on a newer GPU. One fat binary per source keeps cold
start small: the driver reads an image when its first kernel is asked for.

An archive (a zip: the images and device_code.json) lets a machine without NVIDIA's packages build the host half. It is
refused when it was made from other sources than those it is embedded beside.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cuda_wheels

CUBIN_ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 120)
PTX_ARCHITECTURES = (70, 90)
FORCED_PTX = 70
TESTED_PTX = (70, 75, 80)  # what csrc/tests/ptx runs
OPTIONS = ("--std=c++17", "--ptxas-options=-v")
MANIFEST = "device_code.json"
_QUOTED_INCLUDE = re.compile(rb'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


class BuildError(Exception):
    """What stops the build, said for the reader of the build log."""


def source_digest(source: Path, include_dirs: list[Path]) -> str:
    """SHA-256 over a source and every header of ours that it reaches."""
    digest, queue, seen = hashlib.sha256(), [source], set()
    while queue:
        path = queue.pop(0)
        if path in seen:
            continue
        seen.add(path)
        text = path.read_bytes()
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(text).digest())
        for name in _QUOTED_INCLUDE.findall(text):
            candidates = (folder / name.decode() for folder in (path.parent, *include_dirs))
            queue += [found.resolve() for found in candidates if found.is_file()][:1]
    return digest.hexdigest()


def write_if_changed(path: Path, content: bytes) -> None:
    """Leave the file, and with it its time stamp, alone where nothing changed: ninja then rebuilds nothing."""
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    beside.write_bytes(content)
    beside.replace(path)


def compile_cached(source: Path, arch: int, digest: str, include_dirs: list[Path], cache: Path) -> cuda_wheels.Compiled:
    """One source for one architecture, from the cache where the same bytes were compiled before."""
    toolkit = cuda_wheels.Toolkit.find()
    text = "\0".join([digest, str(arch), *OPTIONS, *sorted(f"{k}={v}" for k, v in toolkit.versions.items())])
    base = cache / hashlib.sha256(text.encode()).hexdigest()
    parts = {suffix: base.with_suffix(suffix) for suffix in (".ptx", ".log", ".cubin")}
    if parts[".cubin"].is_file():  # written last, so the others are there
        contents = {suffix: path.read_bytes() for suffix, path in parts.items()}
        return cuda_wheels.Compiled(contents[".cubin"], contents[".ptx"], contents[".log"].decode())
    folders = [*include_dirs, *toolkit.include_dirs]
    compiled = cuda_wheels.compile_source(source, arch, folders, toolkit.nvrtc, list(OPTIONS))
    write_if_changed(parts[".ptx"], compiled.ptx)
    write_if_changed(parts[".log"], compiled.log.encode())
    write_if_changed(parts[".cubin"], compiled.cubin)
    return compiled


def _compile_task(task: tuple[Path, int, str, list[Path], Path]) -> cuda_wheels.Compiled | str:
    # A compiler error travels back as text: the parent prints all of them in one order.
    try:
        return compile_cached(*task)
    except cuda_wheels.CompileError as error:
        return str(error)


def cubin_architectures(source: Path) -> tuple[int, ...]:
    """Architectures that a source is compiled for: all, or those of a line `// architectures: 70 75` in it.

    A kernel that the dispatcher never chooses on a newer GPU needs no image there; its PTX still runs anywhere.
    """
    line = re.search(r"^// architectures: ([0-9 ]+)$", source.read_text(), re.MULTILINE)
    if line is None:
        return CUBIN_ARCHITECTURES
    named = tuple(int(arch) for arch in line[1].split())
    if unknown := set(named) - set(CUBIN_ARCHITECTURES):
        raise BuildError(f"{source}: architectures must be among {CUBIN_ARCHITECTURES}, got {sorted(unknown)}")
    return named


def ptx_architectures(source: Path) -> tuple[int, ...]:
    """Architectures whose PTX is packed: the forced one, and the newest that the source has a cubin for."""
    return tuple(arch for arch in PTX_ARCHITECTURES if arch == FORCED_PTX or arch in cubin_architectures(source))


def image_architectures(source: Path) -> tuple[int, ...]:
    """Every architecture that goes into a source's images."""
    return tuple(sorted({*cubin_architectures(source), *ptx_architectures(source)}))


def tested_architectures(source: Path) -> tuple[int, ...]:
    """Architectures whose PTX the tests interpret."""
    return tuple(arch for arch in image_architectures(source) if arch in TESTED_PTX)


def compile_all(
    sources: list[Path],
    digests: dict[Path, str],
    include_dirs: list[Path],
    cache: Path,
    architectures: Callable[[Path], tuple[int, ...]] = image_architectures,
) -> dict[Path, dict[int, cuda_wheels.Compiled]]:
    """{source: {architecture: Compiled}}, compiled on all cores.

    Raises:
        BuildError: with the compiler's log for each source that failed.
    """
    tasks = [
        (source, arch, digests[source], include_dirs, cache) for source in sources for arch in architectures(source)
    ]
    compiled: dict[Path, dict[int, cuda_wheels.Compiled]] = {source: {} for source in sources}
    failed: dict[Path, dict[str, list[int]]] = {}
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        for (source, arch, *_), result in zip(tasks, pool.map(_compile_task, tasks), strict=True):
            if isinstance(result, str):
                failed.setdefault(source, {}).setdefault(result.strip(), []).append(arch)
            else:
                compiled[source][arch] = result
    if failed:
        lines = []
        for source, logs in failed.items():
            for log, where in logs.items():
                lines += [f"{source} does not compile for {', '.join(f'sm_{arch}' for arch in where)}:", log, ""]
        raise BuildError("\n".join(lines))
    return compiled


def make_images(sources: list[Path], include_dirs: list[Path], cache: Path) -> tuple[dict[str, bytes], dict]:
    """Images by file name, and the manifest that describes them."""
    toolkit = cuda_wheels.Toolkit.find()
    if objection := toolkit.objection():
        raise BuildError(objection)
    digests = {source: source_digest(source, include_dirs) for source in sources}
    compiled = compile_all(sources, digests, include_dirs, cache) if sources else {}
    images, described = {}, {}
    for source, by_arch in compiled.items():
        cubins = {arch: by_arch[arch].cubin for arch in cubin_architectures(source)}
        ptx = {arch: by_arch[arch].ptx for arch in ptx_architectures(source)}
        images[f"{source.stem}.fatbin"] = cuda_wheels.pack_fatbin(cubins, ptx, source.stem, toolkit.nvfatbin)
        forced = {FORCED_PTX: by_arch[FORCED_PTX].ptx}
        images[f"{source.stem}.compute_{FORCED_PTX}.fatbin"] = cuda_wheels.pack_fatbin(
            {}, forced, source.stem, toolkit.nvfatbin
        )
        usage = {f"sm_{arch}": cuda_wheels.resource_usage(by_arch[arch].log) for arch in cubins}
        described[source.stem] = {
            "digest": digests[source],
            "kernels": {
                name: {arch: table.get(name, {}) for arch, table in usage.items()}
                for name in cuda_wheels.kernel_names(by_arch[FORCED_PTX].ptx)
            },
        }
    manifest = {
        "compiler": f"NVRTC {toolkit.versions['nvidia-cuda-nvrtc-cu12']}",
        "architectures": [f"sm_{arch}" for arch in CUBIN_ARCHITECTURES],
        "ptx": [f"compute_{arch}" for arch in PTX_ARCHITECTURES],
        "sources": described,
    }
    return images, manifest


def read_archive(path: Path, sources: list[Path], include_dirs: list[Path]) -> tuple[dict[str, bytes], dict]:
    """What `archive` wrote, checked against the sources it is embedded beside."""
    try:
        with zipfile.ZipFile(path) as archive:
            content = {name: archive.read(name) for name in archive.namelist()}
        manifest = json.loads(content.pop(MANIFEST))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise BuildError(f"SEED_FAST_FATBIN={path} is not an archive made by `make fatbin`: {error}") from error
    expected = {source.stem: source_digest(source, include_dirs) for source in sources}
    got = {stem: entry["digest"] for stem, entry in manifest["sources"].items()}
    if expected != got:
        stale = sorted(stem for stem in {*expected, *got} if expected.get(stem) != got.get(stem))
        raise BuildError(f"SEED_FAST_FATBIN={path} was made from other sources (see {', '.join(stale)}); make it again")
    return content, manifest


def write_archive(folder: Path, path: Path) -> None:
    """Pack what `build` left in `folder`; the same content gives the same bytes."""
    manifest = json.loads((folder / MANIFEST).read_text())
    names = [MANIFEST, *(name for stem in manifest["sources"] for name in image_names(stem))]
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes(), zipfile.ZIP_DEFLATED)
    beside.replace(path)


def image_names(stem: str) -> tuple[str, str]:
    """File names of a source's two images."""
    return f"{stem}.fatbin", f"{stem}.compute_{FORCED_PTX}.fatbin"


def embedding_source(folder: Path, images: dict[str, bytes], manifest: dict) -> str:
    """C++ that pulls the images into the module and tells csrc/cuda/library.cpp which kernel lives in which."""
    stems = list(manifest["sources"])
    owner: dict[str, str] = {}
    for stem, entry in manifest["sources"].items():
        for kernel in entry["kernels"]:
            if kernel in owner:
                raise BuildError(f"kernel {kernel!r} is in {owner[kernel]}.cu and {stem}.cu; names must be unique")
            owner[kernel] = stem
    lines = [
        "// Generated by cmake/compile_device_code.py. The digests make a compiler cache see a changed image.",
        '#include "library.h"',
        "",
    ]
    for index, stem in enumerate(stems):
        for kind, name in zip(("native", "ptx70"), image_names(stem), strict=True):
            symbol = f"seed_fast_image_{index}_{kind}"
            path = json.dumps(str(folder / name))[1:-1]
            lines += [
                f"// {name} sha256 {hashlib.sha256(images[name]).hexdigest()}",
                '__asm__(".pushsection .rodata,\\"a\\",@progbits\\n.balign 64\\n"',
                f'        ".hidden {symbol}\\n.globl {symbol}\\n{symbol}:\\n"',
                f'        ".incbin \\"{path}\\"\\n.popsection\\n");',
                f'extern "C" __attribute__((visibility("hidden"))) const unsigned char {symbol}[];',
            ]
    lines += ["", "namespace seed_fast::cuda {", ""]
    lines += ["const std::vector<Image>& embedded_images() {", "  static const std::vector<Image> images = {"]
    for index, (stem, entry) in enumerate(manifest["sources"].items()):
        kernels = ", ".join(f'"{kernel}"' for kernel in entry["kernels"])
        symbols = f"seed_fast_image_{index}_native, seed_fast_image_{index}_ptx70"
        lines.append(f'      {{"{stem}.cu", {symbols}, {{{kernels}}}}},')
    lines += ["  };", "  return images;", "}", ""]
    text = json.dumps(manifest, sort_keys=True)
    # String literals have a length limit in the standard; pieces of one literal don't.
    pieces = [text[start : start + 4096] for start in range(0, len(text), 4096)]
    lines += ["const char* device_code_manifest() {", "  return"]
    lines += [f'      R"json({piece})json"' for piece in pieces]
    lines += ["      ;", "}", "", "}  // namespace seed_fast::cuda", ""]
    return "\n".join(lines)


def build(arguments: argparse.Namespace) -> None:
    folder = arguments.out.resolve()
    sources = sorted(path.resolve() for path in arguments.sources)
    include_dirs = [path.resolve() for path in arguments.include]
    if arguments.prebuilt:
        images, manifest = read_archive(arguments.prebuilt, sources, include_dirs)
    else:
        images, manifest = make_images(sources, include_dirs, (arguments.cache or folder / "cache").resolve())
    manifest["bytes"] = sum(map(len, images.values()))
    for name, content in images.items():
        write_if_changed(folder / name, content)
    write_if_changed(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    write_if_changed(folder / "device_code.cpp", embedding_source(folder, images, manifest).encode())


def write_ptx(arguments: argparse.Namespace) -> None:
    """PTX as text, of the same compilation as the images."""
    if objection := cuda_wheels.Toolkit.find().objection():
        raise BuildError(objection)
    folder = arguments.out.resolve()
    sources = sorted(path.resolve() for path in arguments.sources)
    include_dirs = [path.resolve() for path in arguments.include]
    digests = {source: source_digest(source, include_dirs) for source in sources}
    cache = (arguments.cache or folder / "cache").resolve()
    compiled = compile_all(sources, digests, include_dirs, cache, tested_architectures)
    texts = {
        f"{source.stem}.compute_{arch}.ptx": made.ptx.rstrip(b"\0")
        for source, by_arch in compiled.items()
        for arch, made in by_arch.items()
    }
    for stale in set(folder.glob("*.ptx")) - {folder / name for name in texts}:
        stale.unlink()
    for name, text in texts.items():
        write_if_changed(folder / name, text)


def probe() -> dict:
    """What CUDA this Python environment has: for CMake."""
    toolkit = cuda_wheels.Toolkit.find()
    host_half = toolkit.has_host_half()
    return {
        "objection": toolkit.objection(),
        "include": ";".join(map(str, toolkit.host_include_dirs)) if host_half else "",
        "cudart_static": str(toolkit.cudart_static) if host_half else "",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("probe")
    for name in ("build", "ptx"):
        command = commands.add_parser(name)
        command.add_argument("out", type=Path)
        command.add_argument("sources", type=Path, nargs="*")
        command.add_argument("-I", dest="include", type=Path, action="append", default=[])
        command.add_argument("--cache", type=Path, help="folder of compiled images by content (default: OUT/cache)")
    commands.choices["build"].add_argument("--prebuilt", type=Path, help="archive to embed instead of compiling")
    command = commands.add_parser("archive")
    command.add_argument("out", type=Path)
    command.add_argument("archive", type=Path)
    arguments = parser.parse_args()
    try:
        if arguments.command == "probe":
            print(json.dumps(probe()))
        elif arguments.command == "build":
            build(arguments)
        elif arguments.command == "ptx":
            write_ptx(arguments)
        else:
            write_archive(arguments.out, arguments.archive)
    except BuildError as error:
        print(f"device code: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
