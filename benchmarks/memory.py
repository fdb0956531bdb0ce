"""Peak extra memory of one call, in a process of its own: `python -m benchmarks.memory OP CASE PROVIDER DEVICE`.

On a CPU it is the growth of the resident set's high-water mark (VmHWM, reset just before) over the resident set before
the call, so it counts whatever allocates: torch, FAISS, C++. Outputs count, inputs and what `prepare` keeps do not. A
call at a tiny case comes first, so that libraries and thread stacks are there. On a GPU it is torch's allocator's peak.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.providers import Benchmark, Call, Case, Provider, Unavailable, environment
from benchmarks.results import ROOT

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TIMEOUT_SECONDS = 300
RESET_PEAK = "5"  # what clear_refs takes for "set VmHWM to the present VmRSS"


def measure(benchmark: Benchmark, case: Case, provider: Provider, device: str, threads: int) -> int | None:
    """Bytes, from a fresh process; None where they cannot be measured here."""
    command = [sys.executable, "-m", "benchmarks.memory", benchmark.op, case.name, provider.name, device]
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return None
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else None


def peak(benchmark: Benchmark, provider: Provider, case_name: str, device: str) -> int:
    """Bytes, in this process.

    Raises:
        OSError: this system does not tell (not Linux, or /proc is closed).
        Unavailable: the provider cannot run here, or runs in a process of its own.
    """
    case = benchmark.case(case_name)
    alike = [other for other in benchmark.cases if (other.dtype, other.options) == (case.dtype, case.options)]
    tiny = min(alike, key=benchmark.bytes)
    with environment(provider.environment):
        for chosen in (tiny, case):
            call = provider.start(benchmark.inputs(chosen, device, 0), chosen, device)
            if hasattr(call, "seconds"):
                call.close()
                raise Unavailable("runs in a process of its own")
            if chosen is tiny:
                call()
        return _cuda_peak(call) if device == "cuda" else _host_peak(call)


def _cuda_peak(call) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_here(call: Call) -> int | None:
    """Bytes of a call that ran before in this process; None where they cannot be measured."""
    try:
        return _host_peak(call)
    except OSError:
        return None


def _host_peak(call) -> int:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # what an earlier call freed must not serve this one unseen
        trim(0)
    CLEAR.write_text(RESET_PEAK)
    before = _kibibytes("VmRSS")
    call()
    return max(0, _kibibytes("VmHWM") - before) * 1024


def _kibibytes(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise OSError(f"{STATUS} has no {field}")


def main() -> int:
    """Print the bytes; exit 1, saying why, where they cannot be measured."""
    from benchmarks import e2e, ops

    op, case, provider, device = sys.argv[1:]
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    benchmark = {**ops.BENCHMARKS, **e2e.BENCHMARKS}[op]
    try:
        print(peak(benchmark, benchmark.provider(provider), case, device))
    except (Unavailable, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
