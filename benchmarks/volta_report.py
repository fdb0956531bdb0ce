"""A report on the kernels for V100 that needs no V100: `make volta-report`.

It compiles csrc/cuda/*.cu for sm_70 and writes, per kernel: registers, spills, shared memory and the occupancy that
follows; instructions by kind, whole and per loop; and for given problems (volta_work.py) the arithmetic that the
machine code does against what is claimed, and the roofline time, which no implementation can beat. Nothing here is
measured. docs/volta.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import asdict
from math import floor
from pathlib import Path
from typing import Any

from benchmarks import results, sass, volta_work
from benchmarks.results import ROOT

sys.path.insert(0, str(ROOT / "cmake"))
import compile_device_code  # in cmake/, which is no package
import cuda_wheels

REPORT = results.RESULTS / results.VOLTA_REPORT
CACHE = ROOT / "build" / "volta"  # compiled code, and the disassembler
SOURCES = ROOT / "csrc" / "cuda"
HEADERS = [SOURCES, ROOT / "csrc" / "include"]
ARCHITECTURE = 70
V100 = {
    "multiprocessors": volta_work.MULTIPROCESSORS,
    "tensor_flops_per_second": 112e12,
    "float32_flops_per_second": 15.7e12,
    "bytes_per_second": 900e9,
    "warps_per_multiprocessor": 64,
    "blocks_per_multiprocessor": 32,
    "registers_per_quarter": 16384,  # each warp lives in one of the four
    "shared_bytes_per_multiprocessor": 96 << 10,
}
# One warp's instruction; HMMA.884 is a quarter of m8n8k4, which is four products of 8x4 by 4x8.
FLOPS = {"HMMA": 512, "FFMA": 64}
CEILING = {"HMMA": "tensor_flops_per_second", "FFMA": "float32_flops_per_second"}
WORKING_LOOP = 16  # such instructions; a loop with fewer is a division or a tail


def sources() -> dict[str, tuple[Path, str]]:
    """{stem: (path, digest)} of the sources that are compiled for sm_70."""
    return {
        path.stem: (path, compile_device_code.source_digest(path, HEADERS))
        for path in sorted(SOURCES.glob("*.cu"))
        if ARCHITECTURE in compile_device_code.cubin_architectures(path)
    }


def occupancy(registers: int, shared_bytes: int, threads: int) -> dict[str, Any]:
    """How much of a kernel fits on a multiprocessor of a V100.

    Args:
        registers: of a thread.
        shared_bytes: of a block.
        threads: of a block.

    Returns:
        {"blocks": that fit, "warps": of them, "limited_by": the resource that keeps more from fitting}.
    """
    warps = threads // 32
    per_warp = -(-registers * 32 // 256) * 256  # handed out in units of 256
    limits = {
        "registers": V100["registers_per_quarter"] // per_warp * 4 // warps,
        "shared memory": V100["shared_bytes_per_multiprocessor"] // max(1, -(-shared_bytes // 256) * 256),
        "warps": V100["warps_per_multiprocessor"] // warps,
        "blocks": V100["blocks_per_multiprocessor"],
    }
    limit = min(limits, key=lambda name: limits[name])
    return {"blocks": limits[limit], "warps": limits[limit] * warps, "limited_by": limit}


def block_sizes(ptx: str) -> dict[str, int]:
    """{kernel: threads of a block at most} of a PTX text."""
    return {name: int(x) for name, x in re.findall(r"\.entry (\w+)\(.*?\)\s*\.maxntid (\d+)", ptx, re.DOTALL)}


def instructions(kernel: sass.Kernel) -> dict[str, Any]:
    """Instructions of a kernel: {"all": counts, "loops": counts of each loop without the loops inside it}."""
    return {
        "all": sass.count(kernel),
        "loops": [{"starts_at": loop.start, **sass.count(kernel, loop.own)} for loop in sass.loops(kernel)],
    }


def describe_work(work: volta_work.Work, code: dict[str, Any] | None) -> dict[str, Any]:
    """Describe a problem: arithmetic, traffic and roofline; with its machine code, also the FLOPs that are executed.

    Args:
        work: the problem.
        code: the counts of the kernel by `instructions`, or None where there is no disassembler.
    """
    seconds = {
        "arithmetic": work.flops / V100[CEILING[work.instruction]],
        "traffic": work.bytes / V100["bytes_per_second"],
    }
    bound = max(seconds, key=lambda name: seconds[name])
    described = {
        **asdict(work),
        "flops_per_output": work.flops / work.outputs,
        "bytes_per_output": work.bytes / work.outputs,
        "roofline_us": round(1e6 * seconds[bound], 3),
        "bound_by": bound,
    }
    if code is not None:
        executed = executed_flops(work, code)
        described |= {"flops_executed": executed, "useful_share": round(work.flops / executed, 3)}
    return described


def executed_flops(work: volta_work.Work, code: dict[str, Any]) -> float:
    """FLOPs of all warps of all blocks, from the machine code and from how often its parts run.

    Raises:
        ValueError: the machine code has other loops than the description of the work.
    """
    counts = [loop.get(work.instruction, 0) for loop in code["loops"]]
    working = [count for count in counts if count >= WORKING_LOOP]
    if len(working) != len(work.turns):
        raise ValueError(f"{work.case}: expected {len(work.turns)} loops with {work.instruction}, got {len(working)}")
    straight = code["all"].get(work.instruction, 0) - sum(counts)
    if straight < WORKING_LOOP:
        straight = 0
    per_warp = work.straight * straight + sum(n * turns for n, turns in zip(working, work.turns, strict=True))
    return per_warp * FLOPS[work.instruction] * work.warps * work.blocks


def make_report(cache: Path) -> dict[str, Any]:
    """Compile the sources, disassemble them where that is possible, and describe every kernel.

    Args:
        cache: folder of compiled code and the disassembler.

    Raises:
        compile_device_code.BuildError: the compiler's packages are missing, or a source does not compile.
    """
    toolkit = cuda_wheels.Toolkit.find()
    if objection := toolkit.objection():
        raise compile_device_code.BuildError(objection)
    tool, disassembler = None, ""
    try:
        tool = sass.find_nvdisasm(cache)
        version = subprocess.run([str(tool), "--version"], capture_output=True, text=True, check=True).stdout
        number = re.search(r"V([\d.]+)", version)
        disassembler = f"nvdisasm {number[1] if number else 'of unknown version'}"
    except sass.NoDisassembler as error:
        disassembler = f"unavailable: {error}"
    kernels: dict[str, Any] = {}
    for stem, (path, digest) in sources().items():
        compiled = compile_device_code.compile_cached(path, ARCHITECTURE, digest, HEADERS, cache)
        threads = block_sizes(compiled.ptx.decode())
        code = sass.disassemble(compiled.cubin, tool) if tool else {}
        for name, usage in sorted(cuda_wheels.resource_usage(compiled.log).items()):
            counts = instructions(code[name]) if name in code else None
            kernels[name] = {
                "source": f"{stem}.cu",
                "threads": threads[name],
                **usage,
                "occupancy": occupancy(usage["registers"], usage["shared_bytes"], threads[name]),
                "instructions": counts,
                "work": [describe_work(work, counts) for work in volta_work.CASES.get(name, [])],
            }
    return {
        "about": "computed from the machine code for sm_70 by `make volta-report`; nothing is measured on a V100",
        "architecture": f"sm_{ARCHITECTURE}",
        "compiler": f"NVRTC {toolkit.versions['nvidia-cuda-nvrtc-cu12']}",
        "disassembler": disassembler,
        "v100": V100,
        "sources": {stem: digest for stem, (_, digest) in sources().items()},
        "kernels": kernels,
    }


def dump(report: dict[str, Any]) -> str:
    """The text of the file. A list or object of plain values is one line, so that a diff shows which numbers moved."""
    innermost = re.compile(r"([\[{])\s+([^\[\]{}]*?)\s+([\]}])")
    return innermost.sub(lambda m: m[1] + " ".join(m[2].split()) + m[3], json.dumps(report, indent=1)) + "\n"


def table(report: dict[str, Any]) -> str:
    """The report for a terminal: a line per kernel, and below it a line per problem."""
    lines = [f"{'kernel':<45} registers spills shared occupancy  HMMA"]
    for name, kernel in report["kernels"].items():
        spills = kernel["spill_store_bytes"] + kernel["spill_load_bytes"]
        fits = kernel["occupancy"]
        hmma = (kernel["instructions"] or {"all": {}})["all"].get("HMMA", 0)
        lines.append(
            f"{name:<45} {kernel['registers']:>9} {spills:>6} {kernel['shared_bytes']:>6} "
            f"{fits['warps']:>3}/{V100['warps_per_multiprocessor']} ({fits['blocks']}) {hmma:>5}"
        )
        for work in kernel["work"]:
            share = f", {floor(100 * work['useful_share'])} % useful" if "useful_share" in work else ""
            lines.append(f"  {work['case']}: at least {work['roofline_us']} us ({work['bound_by']}){share}")
    return "\n".join(lines)


def main() -> int:
    """Write and print the report. Returns 0, or 1 after a line that says why the sources cannot be compiled."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.volta_report", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=REPORT)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of compiled code and the disassembler")
    options = parser.parse_args()
    try:
        report = make_report(options.cache)
    except compile_device_code.BuildError as error:
        print(f"volta-report: {error}", file=sys.stderr)
        return 1
    results.write_file(options.output, dump(report))
    print(table(report))
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
