"""FAISS held to AVX2, in a process of its own, because FAISS and its OpenBLAS choose an instruction set when they load.

The process holds the index and the queries and times itself on request, so that the pipe to it is not in the time. It
sleeps while others are timed.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time

import numpy as np
import torch

from benchmarks.results import ROOT

AVX2 = {"FAISS_SIMD_LEVEL": "AVX2", "OPENBLAS_CORETYPE": "Haswell"}


class FaissProcess:
    """A call of FAISS, to be timed, that runs in another process.

    Args:
        z: [N, D] float32.
        codebook: [K, D] float32.
        threads: OpenMP threads of the process.
    """

    def __init__(self, z: torch.Tensor, codebook: torch.Tensor, threads: int) -> None:
        environ = {**os.environ, **AVX2, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "benchmarks.faiss_process"]
        self._process = subprocess.Popen(command, cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("faiss_process: expected pipes to the process, got none")
        self._requests, self._answers = self._process.stdin, self._process.stdout
        for array in (z, codebook):
            buffer = io.BytesIO()
            np.save(buffer, array.numpy())
            self._requests.write(len(buffer.getvalue()).to_bytes(8, "little") + buffer.getvalue())
        self._requests.flush()

    def _ask(self, request: str) -> str:
        """Send a line, "ids" or "time REPEATS", and return the line that comes back."""
        self._requests.write((request + "\n").encode())
        self._requests.flush()
        answer = self._answers.readline().decode().strip()
        if not answer:
            raise RuntimeError(f"faiss_process: expected an answer to {request!r}, the process ended")
        return answer

    def __call__(self) -> torch.Tensor:
        """Search once; returns ids [N] int64."""
        size = int(self._ask("ids"))
        return torch.from_numpy(np.frombuffer(self._answers.read(size), dtype=np.int64).copy())

    def seconds(self, repeats: int) -> float:
        """Seconds of one search; the mean of `repeats` in a row."""
        return float(self._ask(f"time {repeats}"))

    def close(self) -> None:
        """End the process."""
        self._requests.close()
        self._process.wait(timeout=20)
        self._answers.close()


def main() -> None:
    """Serve one index until stdin ends."""
    import faiss

    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    arrays = [np.load(io.BytesIO(requests.read(int.from_bytes(requests.read(8), "little")))) for _ in range(2)]
    z, codebook = arrays
    faiss.omp_set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook)
    for line in requests:
        verb, *rest = line.decode().split()
        if verb == "ids":
            ids = index.search(z, 1)[1][:, 0].astype(np.int64).tobytes()
            answers.write(f"{len(ids)}\n".encode() + ids)
        else:
            start = time.perf_counter()
            for _ in range(int(rest[0])):
                index.search(z, 1)
            answers.write(f"{(time.perf_counter() - start) / int(rest[0]):.9f}\n".encode())
        answers.flush()


if __name__ == "__main__":
    main()
