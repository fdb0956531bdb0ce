"""What every release wheel must be, checked on the file alone."""

from __future__ import annotations

import re
import zipfile
from email import message_from_bytes
from pathlib import Path, PurePosixPath

from tests.packaging.binary import elf_facts, embedded_images

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 40 * 2**20  # the embedded checkpoint and the device code of all architectures, with room to grow
MANYLINUX_LIBRARIES = {
    "libc.so.6",
    "libm.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "ld-linux-x86-64.so.2",
}
NATIVE = {f"sm_{arch}" for arch in (70, 75, 80, 86, 89, 90, 100, 120)} | {"compute_70", "compute_90"}


def source_files() -> set[str]:
    """Files of this checkout that a wheel must hold, by their name in it."""
    package = {path.relative_to(ROOT) for path in (ROOT / "seed_fast").rglob("*.py")}
    assets = {path.relative_to(ROOT) for path in (ROOT / "seed_fast" / "assets").rglob("*") if path.is_file()}
    names = {path.as_posix() for path in package | assets} | {"seed_fast/py.typed"}
    kernels = ROOT / "kernels" / "triton_ops"
    for pattern in ("*.py", "tuned/*.json"):
        names |= {f"seed_fast/kernels/{path.relative_to(kernels).as_posix()}" for path in kernels.rglob(pattern)}
    return names


def content_objections(path: Path) -> list[str]:
    """What is wrong with the files of any wheel of ours, compiled or pure."""
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
        metadata = message_from_bytes(wheel.read(next(name for name in names if name.endswith("/METADATA"))))
    requirements = {line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    objections = [f"{name} is missing" for name in sorted(source_files() - names)]
    top = {PurePosixPath(name).parts[0] for name in names}
    objections += [f"it installs {name} at top level" for name in sorted(top) if not name.startswith("seed_fast")]
    if "torch>=2.4" not in requirements:
        objections.append(f"it should ask for torch>=2.4 and no upper bound, got {sorted(requirements)}")
    if path.stat().st_size > MAX_BYTES:
        objections.append(f"it is {path.stat().st_size / 2**20:.1f} MiB, more than {MAX_BYTES / 2**20:.0f}")
    return objections


def release_objections(path: Path) -> list[str]:
    """What is wrong with a compiled release wheel."""
    objections = content_objections(path)
    if not path.name.endswith("-manylinux_2_28_x86_64.whl"):
        objections.append("it is not tagged manylinux_2_28_x86_64 alone")
    with zipfile.ZipFile(path) as wheel:
        modules = [wheel.read(name) for name in wheel.namelist() if name.startswith("seed_fast/_C.")]
    if len(modules) != 1:
        return [*objections, f"it should hold one seed_fast/_C module, got {len(modules)}"]
    facts = elf_facts(modules[0])
    objections += [f"it links {name}" for name in sorted(facts.needed - MANYLINUX_LIBRARIES)]
    objections += [f"it uses {name} of torch" for name in torch_symbols(facts.undefined)]
    if facts.exported != {"PyInit__C"}:
        objections.append(f"it should export PyInit__C alone, got {sorted(facts.exported)[:5]}")
    if facts.glibc > (2, 28):
        objections.append(f"it needs glibc {'.'.join(map(str, facts.glibc))}")
    sources = list((ROOT / "csrc" / "cuda").glob("*.cu"))
    images = sorted(sorted(image) for image in embedded_images(modules[0]))
    expected = sorted([*(sorted(images_of(source)) for source in sources), *([["compute_70"]] * len(sources))])
    if images != expected:
        objections.append(f"it should hold the images {expected}, got {images}")
    return objections


def images_of(source: Path) -> set[str]:
    """Images of a device source: all, or those of its line `// architectures: 70 75` and PTX of Volta and Hopper."""
    line = re.search(r"^// architectures: (.+)$", source.read_text(), re.MULTILINE)
    if line is None:
        return NATIVE
    cubins = {f"sm_{arch}" for arch in line[1].split()}
    return cubins | {"compute_70"} | ({"compute_90"} if "sm_90" in cubins else set())


def torch_symbols(names: set[str]) -> list[str]:
    """Symbols that only a torch library could provide."""
    return sorted(name for name in names if any(space in name for space in ("c10", "5torch", "2at", "THP", "aoti_")))
