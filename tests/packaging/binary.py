"""Reads what a compiled module is made of without importing it: ELF facts and embedded fat binaries."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass

from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

_FATBIN_MAGIC = struct.pack("<I", 0xBA55ED50)
_KINDS = {1: "compute", 2: "sm"}


@dataclass(frozen=True)
class ElfFacts:
    """What the dynamic linker sees of a module."""

    needed: set[str]
    undefined: set[str]
    exported: set[str]
    glibc: tuple[int, ...]  # newest version asked for


def elf_facts(data: bytes) -> ElfFacts:
    """Libraries, symbols and the newest glibc version of a shared object."""
    elf = ELFFile(io.BytesIO(data))
    dynamic = elf.get_section_by_name(".dynamic")
    symbols = list(elf.get_section_by_name(".dynsym").iter_symbols())
    versions = [
        tuple(map(int, auxiliary.name.removeprefix("GLIBC_").split(".")))
        for section in elf.iter_sections()
        if isinstance(section, GNUVerNeedSection)
        for _, auxiliaries in section.iter_versions()
        for auxiliary in auxiliaries
        if re.fullmatch(r"GLIBC_[\d.]+", auxiliary.name)
    ]
    return ElfFacts(
        needed={tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"},
        undefined={symbol.name for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF"},
        exported={symbol.name for symbol in symbols if symbol["st_shndx"] != "SHN_UNDEF" and symbol.name},
        glibc=max(versions, default=()),
    )


def embedded_images(data: bytes) -> list[list[str]]:
    """For each fat binary in `data`, in file order, its images: "sm_70" is a cubin, "compute_70" is PTX."""
    found = []
    for match in re.finditer(re.escape(_FATBIN_MAGIC), data):
        _, _, header, size = struct.unpack_from("<IHHQ", data, match.start())
        position, end = match.start() + header, match.start() + header + size
        if header != 16 or end > len(data):
            continue  # the magic number as a constant in the CUDA runtime's own code
        images = []
        while position < end:
            kind, _, entry_header, payload = struct.unpack_from("<HHIQ", data, position)
            (architecture,) = struct.unpack_from("<I", data, position + 28)
            images.append(f"{_KINDS[kind]}_{architecture}")
            position += entry_header + payload
        found.append(images)
    return found
