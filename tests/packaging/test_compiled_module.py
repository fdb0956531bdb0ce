"""The compiled module of this installation: what it links, what it embeds, what it says of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import seed_fast
from tests.packaging.binary import elf_facts, embedded_images
from tests.packaging.wheel_rules import ROOT, images_of, torch_symbols

_C = pytest.importorskip("seed_fast._C", reason="pure-Python installation")
MODULE = Path(_C.__file__)
CPU_FLAGS = {  # feature -> flags of /proc/cpuinfo
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx512_bf16": {"avx512_bf16"},
    "avx512_vnni": {"avx512_vnni"},
}


def cuda_embedded() -> bool:
    return _C.build_info()["cuda"]["embedded"]


needs_cuda_build = pytest.mark.skipif(not cuda_embedded(), reason="the module was built without CUDA")


def test_it_uses_no_symbol_and_no_library_of_torch():
    facts = elf_facts(MODULE.read_bytes())
    assert torch_symbols(facts.undefined) == []
    assert [name for name in facts.needed if "torch" in name or "c10" in name] == []


def test_it_loads_without_cuda_libraries():
    assert [name for name in elf_facts(MODULE.read_bytes()).needed if "cuda" in name or "nv" in name] == []


def test_it_exports_its_entry_point_alone():
    assert elf_facts(MODULE.read_bytes()).exported == {"PyInit__C"}


def test_importing_it_does_not_import_torch():
    code = "import sys, seed_fast._C; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_it_is_of_this_version():
    assert _C.build_info()["version"] == seed_fast.__version__


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux")
def test_cpu_features_are_those_that_the_kernel_reports():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    expected = [name for name, wanted in CPU_FLAGS.items() if wanted <= flags]
    assert _C.cpu_features() == expected


@needs_cuda_build
def test_every_device_source_is_embedded_for_its_architectures_and_as_volta_ptx_of_its_own():
    sources = list((ROOT / "csrc" / "cuda").glob("*.cu"))
    assert set(_C.build_info()["cuda"]["device_code"]["sources"]) == {path.stem for path in sources}
    images = sorted(sorted(image) for image in embedded_images(MODULE.read_bytes()))
    assert images == sorted([*(sorted(images_of(path)) for path in sources), *([["compute_70"]] * len(sources))])


@needs_cuda_build
def test_without_a_gpu_the_reason_names_the_cuda_error():
    available, reason = _C.cuda_available()
    if available:
        pytest.skip("there is a GPU")
    assert "CUDA error" in reason
    assert "driver" in reason


def test_files_for_one_instruction_set_share_no_function_with_the_rest():
    # A weak function (an inline or a template of a header) in an AVX-512 object may be the copy the linker keeps for
    # everybody, and then a CPU without AVX-512 meets an illegal instruction.
    from elftools.elf.elffile import ELFFile

    folder = ROOT / "build" / f"{sys.implementation.cache_tag}-default" / "CMakeFiles" / "seed_fast_cpu.dir"
    objects = list(folder.rglob("*_avx*.cpp.o"))
    if not objects:
        pytest.skip("the objects of the build are not there")
    for path in objects:
        with path.open("rb") as stream:
            symbols = list(ELFFile(stream).get_section_by_name(".symtab").iter_symbols())
        weak = [symbol.name for symbol in symbols if symbol["st_info"]["bind"] == "STB_WEAK"]
        defined = [name for name in weak if not name.startswith("DW.ref.")]
        assert defined == [], path.name
