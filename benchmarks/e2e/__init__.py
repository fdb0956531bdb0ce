"""Whole parts of the tokenizer, as users run them: one `Benchmark` per part."""

from benchmarks.e2e.encode import ENCODE, QFORMER
from benchmarks.e2e.loader import LOADER
from benchmarks.e2e.train_tokenizer import STAGE1, STAGE2
from benchmarks.providers import Benchmark

BENCHMARKS = {benchmark.op: benchmark for benchmark in (ENCODE, QFORMER)}
TRAINING = {benchmark.op: benchmark for benchmark in (STAGE1, STAGE2)}
LOADING = {LOADER.op: LOADER}


def __getattr__(name: str) -> dict[str, Benchmark]:
    """LANGUAGE comes when it is asked for: its module is a command too, and would be loaded twice."""
    if name != "LANGUAGE":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from benchmarks.e2e.train_lm import TRAIN_LM

    return {TRAIN_LM.op: TRAIN_LM}
