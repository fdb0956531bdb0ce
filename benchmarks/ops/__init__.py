"""One file per op, of the op's name."""

from benchmarks.ops import attention, nearest_code, vector_quantize

BENCHMARKS = {module.BENCHMARK.op: module.BENCHMARK for module in (nearest_code, vector_quantize, attention)}
