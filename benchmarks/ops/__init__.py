"""One file per op, of the op's name."""

from benchmarks.ops import add_layer_norm, attention, bias_gelu, nearest_code, vector_quantize

MODULES = (nearest_code, vector_quantize, attention, add_layer_norm, bias_gelu)
BENCHMARKS = {module.BENCHMARK.op: module.BENCHMARK for module in MODULES}
