"""All benchmarks by name, in the groups that `seed-fast bench` takes."""

from __future__ import annotations

from benchmarks.e2e.encode import ENCODE, QFORMER
from benchmarks.e2e.loader import LOADER
from benchmarks.e2e.train_lm import TRAIN_LM
from benchmarks.e2e.train_tokenizer import STAGE1, STAGE2
from benchmarks.ops import add_layer_norm, attention, bias_gelu, nearest_code, vector_quantize
from benchmarks.providers import Benchmark

OPS = tuple(module.BENCHMARK for module in (nearest_code, vector_quantize, attention, add_layer_norm, bias_gelu))
# Name of a group -> its benchmarks by name. A results file holds one group, or a part of it.
GROUPS: dict[str, dict[str, Benchmark]] = {
    group: {benchmark.op: benchmark for benchmark in members}
    for group, members in {
        "ops": OPS,
        "e2e": (ENCODE, QFORMER),
        "train_tokenizer": (STAGE1, STAGE2),
        "loader": (LOADER,),
        "train_lm": (TRAIN_LM,),
    }.items()
}
BENCHMARKS = {name: benchmark for members in GROUPS.values() for name, benchmark in members.items()}


def choose(what: str) -> list[Benchmark]:
    """The benchmarks of a group, or the one benchmark of that name.

    Raises:
        ValueError: neither is called `what`.
    """
    if what in GROUPS:
        return list(GROUPS[what].values())
    if what not in BENCHMARKS:
        names = ", ".join(dict.fromkeys((*GROUPS, *BENCHMARKS)))
        raise ValueError(f"what to measure must be one of {names}, got {what!r}")
    return [BENCHMARKS[what]]


def group_of(op: str) -> str | None:
    """Name of the group that the benchmark `op` belongs to, or None if there is no such benchmark."""
    return next((group for group, members in GROUPS.items() if op in members), None)
