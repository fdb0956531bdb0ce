"""Whole parts of the tokenizer, as users run them: one `Benchmark` per part."""

from benchmarks.e2e.encode import ENCODE, QFORMER
from benchmarks.e2e.loader import LOADER
from benchmarks.e2e.train_lm import TRAIN_LM
from benchmarks.e2e.train_tokenizer import STAGE1, STAGE2

BENCHMARKS = {benchmark.op: benchmark for benchmark in (ENCODE, QFORMER)}
TRAINING = {benchmark.op: benchmark for benchmark in (STAGE1, STAGE2)}
LOADING = {LOADER.op: LOADER}
LANGUAGE = {TRAIN_LM.op: TRAIN_LM}
