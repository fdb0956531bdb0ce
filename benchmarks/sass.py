"""Machine code of sm_70: a disassembler that still reads it, counts of instructions, and loops.

CUDA 12.8 is the last release whose nvdisasm knows sm_70. No package of NVIDIA's on PyPI has it, but the wheel of triton
3.3.1 does: it is downloaded into a folder of its own, checked by its hash, and never installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

TRITON = "triton==3.3.1 --hash=sha256:b31e3aa26f8cb3cc5bf4e187bf737cbacf17311e1112b781d4a059353dfd731b"
MEMBER = "triton/backends/nvidia/bin/nvdisasm"


class NoDisassembler(Exception):
    """There is no disassembler for sm_70 on this machine; the text says why."""


def find_nvdisasm(folder: Path) -> Path:
    """Path of the disassembler in `folder`; the first call downloads it.

    Raises:
        NoDisassembler: it cannot be downloaded.
    """
    tool = folder / "nvdisasm"
    if tool.is_file():
        return tool
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        requirement = Path(scratch) / "requirements.txt"
        requirement.write_text(TRITON)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "-r", requirement]
        # Any Python may ask for this one wheel.
        command += ["--only-binary=:all:", "--python-version=3.11", "--platform=manylinux_2_28_x86_64", "-d", scratch]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoDisassembler(f"{TRITON.split()[0]} cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            beside = Path(archive.extract(MEMBER, scratch))
        beside.chmod(0o755)
        beside.replace(tool)
    return tool


@dataclass(frozen=True)
class Instruction:
    """One instruction of a listing. `target` is the label that a branch goes to, or ""."""

    opcode: str
    guarded: bool  # by a predicate
    target: str


@dataclass(frozen=True)
class Kernel:
    """A kernel's instructions, and {label: index of the instruction that it stands before}."""

    instructions: list[Instruction]
    labels: dict[str, int]


_SECTION = re.compile(r"^\.text\.(\w+):$")
_LABEL = re.compile(r"^(\.L_\w+):$")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(@!?U?P\w+ )?\s*([A-Z][\w.]*)(.*);")
_TARGET = re.compile(r"`\((\.L_\w+)\)")


def parse(listing: str) -> dict[str, Kernel]:
    """{name: kernel} of a listing that `nvdisasm -c` printed."""
    kernels: dict[str, Kernel] = {}
    current = None
    for line in listing.splitlines():
        if match := _SECTION.match(line):
            current = kernels.setdefault(match[1], Kernel([], {}))
        elif current and (match := _LABEL.match(line)):
            current.labels[match[1]] = len(current.instructions)
        elif current and (match := _INSTRUCTION.match(line)):
            target = _TARGET.search(match[3])
            branches = match[2].startswith("BRA")
            current.instructions.append(
                Instruction(match[2], match[1] is not None, target[1] if target and branches else "")
            )
    return kernels


def disassemble(cubin: bytes, nvdisasm: Path) -> dict[str, Kernel]:
    """{name: kernel} of a compiled image."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([str(nvdisasm), "-c", file.name], capture_output=True, text=True, check=True)
    return parse(done.stdout)


@dataclass(frozen=True)
class Loop:
    """A natural loop, by indices of instructions.

    Attributes:
        start: its first instruction.
        members: all of its instructions.
        own: those that are in no loop inside it.
    """

    start: int
    members: frozenset[int]
    own: frozenset[int]


def loops(kernel: Kernel) -> list[Loop]:
    """Every loop of a kernel, in the order of their first instruction."""
    successors = _successors(kernel)
    dominators = _dominators(successors)
    predecessors: list[list[int]] = [[] for _ in successors]
    for at, following in enumerate(successors):
        for to in following:
            predecessors[to].append(at)
    # A branch back to an instruction that every way to the branch passes closes a loop, whose body is what leads to the
    # branch without passing that header.
    bodies: dict[int, set[int]] = {}
    for at, following in enumerate(successors):
        for header in following:
            # The branch to itself behind the last EXIT is no loop.
            if header == at or at not in dominators or header not in dominators[at]:
                continue
            body, queue = bodies.setdefault(header, {header}), [at]
            while queue:
                node = queue.pop()
                if node not in body and node in dominators:
                    body.add(node)
                    queue += predecessors[node]
    ordered = []
    for header, body in sorted(bodies.items()):
        inner: set[int] = set().union(*(other for start, other in bodies.items() if start != header and other < body))
        ordered.append(Loop(header, frozenset(body), frozenset(body - inner)))
    return ordered


def _successors(kernel: Kernel) -> list[list[int]]:
    """For each instruction, the indices of those that may come next."""
    edges: list[list[int]] = []
    for at, instruction in enumerate(kernel.instructions):
        following = [at + 1] if at + 1 < len(kernel.instructions) else []
        name = instruction.opcode
        leaves = name.split(".")[0] in ("EXIT", "RET") or name in ("BRA", "BRA.U") or name.startswith("BRA.CONV")
        if leaves and not instruction.guarded:
            following = []
        if instruction.target:
            following.append(kernel.labels[instruction.target])
        edges.append([to for to in following if to < len(kernel.instructions)])
    return edges


def _dominators(successors: list[list[int]]) -> dict[int, set[int]]:
    """For each instruction that can be reached: the targets of branches back that every way to it passes."""
    # Reverse postorder of a depth-first search, so that an instruction comes after what dominates it.
    order: list[int] = []
    seen, stack = {0}, [(0, iter(successors[0]))]
    while stack:
        node, rest = stack[-1]
        step = next((to for to in rest if to not in seen), None)
        if step is None:
            order.append(stack.pop()[0])
        else:
            seen.add(step)
            stack.append((step, iter(successors[step])))
    order.reverse()
    rank = {node: place for place, node in enumerate(order)}
    predecessors: dict[int, list[int]] = {node: [] for node in order}
    for node in order:
        for to in successors[node]:
            predecessors[to].append(node)
    # Immediate dominators by Cooper, Harvey and Kennedy, "A simple, fast dominance algorithm" (2001).
    immediate = {0: 0}
    changed = True
    while changed:
        changed = False
        for node in order[1:]:
            known = [before for before in predecessors[node] if before in immediate]
            best = known[0]
            for other in known[1:]:
                while best != other:
                    if rank[best] > rank[other]:
                        best = immediate[best]
                    else:
                        other = immediate[other]
            if immediate.get(node) != best:
                immediate[node], changed = best, True
    # Collect the chain of dominators of each, as far as it could be the header of a loop.
    heads = {to for at, following in enumerate(successors) for to in following if to <= at}
    dominators: dict[int, set[int]] = {}
    for node in order:
        above = {node} & heads
        dominators[node] = above if node == 0 else dominators[immediate[node]] | above
    return dominators


KINDS = ("HMMA", "FFMA", "DFMA", "MUFU", "LDG", "STG", "LDS", "STS", "LDL", "STL", "SHFL", "BAR")


def count(kernel: Kernel, members: frozenset[int] | None = None) -> dict[str, int]:
    """Count the instructions of a kernel, or of `members` of it: {"all": all of them, "HMMA": ..., ...} by kind."""
    chosen = range(len(kernel.instructions)) if members is None else members
    opcodes = [kernel.instructions[at].opcode for at in chosen]
    kinds = Counter(opcode.split(".")[0] for opcode in opcodes)
    return {"all": len(opcodes)} | {kind: kinds[kind] for kind in KINDS if kinds[kind]}
