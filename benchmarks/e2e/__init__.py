"""Whole parts of the tokenizer, as users run them: one `Benchmark` per part."""

from benchmarks.e2e.encode import ENCODE, QFORMER

BENCHMARKS = {benchmark.op: benchmark for benchmark in (ENCODE, QFORMER)}
