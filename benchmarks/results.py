"""The one schema of results, and the one place where benchmarks write files.

A results file is JSON: {"schema", "provenance", "ceilings", "rows", "bars"}. It has one row per op, case, dtype, device
and provider.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

import seed_fast
from benchmarks import providers
from seed_fast import info
from seed_fast._files import write_beside

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
VOLTA_REPORT = "volta_report.json"  # lies beside the results; benchmarks/volta_report.py writes it

# Field -> its type(s). Times are ms per call; docs/benchmarks.md describes each field.
ROW: dict[str, Any] = {
    "op": str,
    "case": str,
    "shape": dict,
    "dtype": str,
    "device": str,  # "cpu" or "cuda"
    "threads": int,
    "provider": str,
    "ours": bool,
    "status": str,  # "ok", "wrong: why", "failed: why", or why it did not run: "not installed", ...
    "note": str,
    "wall_ms": (dict, type(None)),  # {"median", "q20", "q80"}
    "device_ms": (dict, type(None)),  # the same; None on a CPU
    "rounds": int,
    "speedup": (float, type(None)),  # time of the op's baseline / this time, median over rounds of wall time
    "flops": (int, float),
    "bytes": (int, float),
    "gemm_share": (float, type(None)),  # FLOP/s as a share of the GEMM ceiling of the dtype
    "copy_share": (float, type(None)),  # bytes/s as a share of the copy ceiling
    "peak_bytes": (int, type(None)),  # extra memory of one call; None where it was not measured
}
BAR: dict[str, Any] = {
    "op": str,
    "name": str,
    "case": str,
    "fast": str,
    "slow": (str, type(None)),  # the peer that was fastest
    "metric": str,
    "device": str,
    "target": (int, float),
    "ratio": (float, type(None)),  # None where it was not measured
    "state": str,
}
STATES = ("reached", "not reached", "not measured")  # of a bar
MEASURES = ("wall_ms", "device_ms")
# Environment variables that hold a library to fewer instruction sets than the processor has: torch's own kernels,
# oneDNN, MKL, the C++ kernels of seed_fast, FAISS and its OpenBLAS.
INSTRUCTION_LIMITS = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "SEED_FAST_CPU_ISA",
    "FAISS_SIMD_LEVEL",
    "OPENBLAS_CORETYPE",
)


def key(row: dict[str, Any]) -> tuple[str, ...]:
    """The values that identify a row within a file."""
    return tuple(str(row[name]) for name in ("op", "case", "dtype", "device", "threads", "provider"))


def validate(results: dict[str, Any]) -> None:
    """Check that `results` have this schema.

    Raises:
        ValueError: they don't; the message names the field.
    """
    if results.get("schema") != SCHEMA:
        raise ValueError(f"results: schema must be {SCHEMA}, got {results.get('schema')!r}")
    for name, kind in {"provenance": dict, "ceilings": dict, "rows": list, "bars": list}.items():
        if not isinstance(results.get(name), kind):
            raise ValueError(f"results: {name} must be a {kind.__name__}, got {type(results.get(name)).__name__}")
    # Every row and bar by itself, and then what they must agree in.
    for part, fields in (("rows", ROW), ("bars", BAR)):
        for index, entry in enumerate(results[part]):
            _check_fields(f"{part}[{index}]", entry, fields)
    for index, row in enumerate(results["rows"]):
        for measure in MEASURES:
            if row[measure] is not None and set(row[measure]) != {"median", "q20", "q80"}:
                raise ValueError(f"results: rows[{index}].{measure} must hold median, q20 and q80, got {row[measure]}")
        if (row["status"] == "ok") != (row["wall_ms"] is not None):
            raise ValueError(f"results: rows[{index}] must have times exactly where its status is ok, got {row}")
    for index, bar in enumerate(results["bars"]):
        if bar["state"] not in STATES:
            raise ValueError(f"results: bars[{index}].state must be one of {', '.join(STATES)}, got {bar['state']!r}")
    keys = [key(row) for row in results["rows"]]
    if repeated := {" ".join(k) for k in keys if keys.count(k) > 1}:
        raise ValueError(f"results: every row must be there once, got twice: {'; '.join(sorted(repeated))}")


def _check_fields(where: str, entry: Any, fields: dict[str, Any]) -> None:
    if not isinstance(entry, dict) or set(entry) != set(fields):
        got = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise ValueError(f"results: {where} must have exactly the fields {sorted(fields)}, got {got}")
    for name, kind in fields.items():
        if not isinstance(entry[name], kind) or (isinstance(entry[name], bool) and kind is not bool):
            raise ValueError(f"results: {where}.{name} has the wrong type, got {entry[name]!r}")


def files(folder: Path) -> list[Path]:
    """The results files of a folder, sorted. The report of volta_report.py beside them holds nothing measured."""
    return sorted(path for path in folder.glob("*.json") if path.name != VOLTA_REPORT)


def load(path: Path) -> dict[str, Any]:
    """Results from a file.

    Raises:
        ValueError: it is not JSON or not of this schema; the message names the file.
        OSError: it cannot be read.
    """
    try:
        results = json.loads(Path(path).read_text())
        validate(results)
    except ValueError as error:  # JSONDecodeError is one
        raise ValueError(f"{path}: {error}") from error
    return results


def dump(results: dict[str, Any]) -> str:
    """The text of a results file: one line per row, so that a diff shows which numbers moved."""
    validate(results)
    parts = []
    for name, value in results.items():
        if isinstance(value, list):
            lines = ",\n".join(json.dumps(_rounded(entry)) for entry in value)
            parts.append(f'"{name}": [\n{lines}\n]')
        else:
            parts.append(f'"{name}": {json.dumps(_rounded(value), indent=1)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def save(results: dict[str, Any], path: Path) -> None:
    """Write results to a file.

    Raises:
        ValueError: they are not of this schema; nothing is written.
        OSError: the file cannot be written.
    """
    write_file(path, dump(results))


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file of the benchmarks (results, tables, figures), whole or not at all; its folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_beside(path, content.encode() if isinstance(content, str) else content)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return value


def provenance(threads: int) -> dict[str, Any]:
    """Describe the machine, the versions and the settings of a run that starts now.

    Args:
        threads: CPU threads that every provider gets.

    Returns:
        The "provenance" of a results file. `cpu_capability` is the instruction set that torch's own kernels run on;
        `instruction_limits` holds the variables of `INSTRUCTION_LIMITS` that are set, so {} says that nothing is
        hidden from the run. Files of older runs have neither.
    """
    this = info.collect()
    cpu, gpus = this["devices"]["cpu"], this["devices"]["gpus"]
    gpu = gpus[0]["name"] if gpus else None
    return {
        "machine": _slug(gpu) if gpu else _slug(f"{cpu['model']} {cpu['cores']} cores"),
        "cpu": cpu["model"],
        "cpu_features": cpu["features"],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "instruction_limits": {name: os.environ[name] for name in INSTRUCTION_LIMITS if os.environ.get(name)},
        "cores": cpu["cores"],
        "threads": threads,
        "gpu": gpu,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if gpu else None,
        "system": platform.system(),
        "load_before": round(os.getloadavg()[0], 2),
        "time": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "commit": _commit(),
        "seed_fast": seed_fast.__version__,
        "compiled": this["build"].get("compiler"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": providers.version("triton"),
        "peers": {name: providers.version(name) for name in providers.PEERS},
    }


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _commit() -> str | None:
    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    changed = commit and _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with local changes" if changed else commit


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None
