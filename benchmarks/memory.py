"""Peak memory of a provider: `python -m benchmarks.memory OP CASE PROVIDER DEVICE` measures it in a fresh process.

`Benchmark.memory` says what is measured:

- "call": how far one call raises memory. On a CPU, the growth of the resident set's high-water mark (VmHWM, reset just
  before) over the resident set before the call, which counts whatever allocates: torch, FAISS, C++. Outputs count;
  inputs and what `prepare` keeps do not. A call at a tiny case comes first, so that libraries and thread stacks are
  there. On a GPU, the peak of torch's allocator over what was allocated before.
- "call here": the same in the process of the run, after the calls that were timed, where to make the model again would
  take minutes. On a GPU it is measured in a fresh process all the same.
- "process": the peak of a whole fresh process over `PROCESS_CALLS` calls: on a CPU its resident set, on a GPU what
  torch has allocated.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import catalog
from benchmarks.providers import Benchmark, Call, Case, Provider, Unavailable, close, environment
from benchmarks.results import ROOT

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TIMEOUT_SECONDS = {"call": 300, "call here": 300, "process": 1800}
RESET_PEAK = "5"  # what clear_refs takes for "set VmHWM to the present VmRSS"
PROCESS_CALLS = 3


def measured(benchmark: Benchmark, case: Case, provider: Provider, device: str, threads: int, call: Call) -> int | None:
    """Peak memory in bytes, in the way that the benchmark asks for; None where it cannot be measured.

    Args:
        call: the provider's, which has run in this process.
    """
    if benchmark.memory == "call here" and device == "cpu":
        try:
            return _growth_on_host(call)
        except OSError:
            return None
    command = [sys.executable, "-m", "benchmarks.memory", benchmark.op, case.name, provider.name, device]
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    timeout = TIMEOUT_SECONDS[benchmark.memory]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return None
    # Libraries may print as well; the bytes are the last line.
    last = (done.stdout.strip().splitlines() or [""])[-1]
    return int(last) if done.returncode == 0 and last.isdigit() else None


def peak_here(benchmark: Benchmark, provider: Provider, case_name: str, device: str) -> int:
    """Peak memory in bytes, measured in this process, which has done nothing else.

    Raises:
        OSError: this system does not tell (not Linux, or /proc is closed).
        Unavailable: the provider cannot run here, or runs in a process of its own.
    """
    case = benchmark.case(case_name)
    with environment(provider.environment):
        if benchmark.memory == "process":
            return _peak_of_process(benchmark, provider, case, device)
        return _growth_of_call(benchmark, provider, case, device)


def _peak_of_process(benchmark: Benchmark, provider: Provider, case: Case, device: str) -> int:
    call = provider.start(benchmark.inputs(case, device, 0), case, device)
    benchmark.release_shared()
    for _ in range(PROCESS_CALLS):
        call()
    # VmHWM, because the high-water mark of `getrusage` begins at that of the process that started this one.
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else _kibibytes("VmHWM") * 1024
    close(call)
    return peak


def _growth_of_call(benchmark: Benchmark, provider: Provider, case: Case, device: str) -> int:
    alike = [other for other in benchmark.cases if (other.dtype, other.options) == (case.dtype, case.options)]
    tiny = min(alike, key=benchmark.bytes)
    for chosen in (tiny, case):
        call = provider.start(benchmark.inputs(chosen, device, 0), chosen, device)
        if hasattr(call, "seconds"):
            close(call)
            raise Unavailable("runs in a process of its own")
        if chosen is tiny:
            call()
    return _growth_on_cuda(call) if device == "cuda" else _growth_on_host(call)


def _growth_on_cuda(call: Call) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _growth_on_host(call: Call) -> int:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # what an earlier call freed must not serve this one unseen
        trim(0)
    CLEAR.write_text(RESET_PEAK)
    before = _kibibytes("VmRSS")
    call()
    return max(0, _kibibytes("VmHWM") - before) * 1024


def _kibibytes(field: str) -> int:
    """A field of the kernel's record of this process, in KiB."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise OSError(f"{STATUS} has no {field}")


def main() -> int:
    """Print the bytes. Exits with 1, after a line that says why, where they cannot be measured."""
    op, case, provider, device = sys.argv[1:]
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    benchmark = catalog.BENCHMARKS[op]
    try:
        print(peak_here(benchmark, benchmark.provider(provider), case, device))
    except (Unavailable, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
