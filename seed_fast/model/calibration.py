"""What is faster on this machine: measured once, then read from the cache folder.

A question, such as "which library multiplies float32 matrices", has a table as its answer. Its file is named after the
question and the machine: processor, instruction sets, number of threads, versions of torch and seed_fast. A file that
is damaged or about another machine is measured again; a folder that can't be written to costs a measurement per
process. Two processes may ask at once: each writes a whole file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import seed_fast
from seed_fast import _env
from seed_fast._files import write_beside
from seed_fast._machine import cpu_model

logger = logging.getLogger(__name__)

SCHEMA = 1
# What hides instruction sets from torch, oneDNN, MKL and our kernels.
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "SEED_FAST_CPU_ISA")
LEAST_ROUNDS, MOST_ROUNDS = 7, 25
SHORTEST = 2e-4  # s: a quicker call is repeated, so that the clock is no part of its time

_known: dict[str, dict[str, Any]] = {}  # answers of this process
_lock = threading.RLock()


def machine() -> dict[str, Any]:
    """What an answer depends on."""
    return {
        "processor": cpu_model(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "limits": {name: os.environ[name] for name in LIMITS if os.environ.get(name)},
        "torch": torch.__version__,
        "seed_fast": seed_fast.__version__,
        "threads": torch.get_num_threads(),
    }


def folder() -> Path:
    """Where answers are kept."""
    return Path(_env.get("SEED_FAST_CACHE")).expanduser() / "calibration"


def answer(
    question: str,
    measure: Callable[[], dict[str, Any]],
    is_answer: Callable[[Any], bool],
    *,
    again: bool = False,
) -> dict[str, Any]:
    """The table that answers a question on this machine.

    Args:
        question: its name, with everything that the answer depends on besides the machine.
        measure: makes the answer, of what JSON can hold.
        is_answer: False for what a file can't mean; such a file is measured again.
        again: measure now, once in this process, whatever the file says.
    """
    about = {"schema": SCHEMA, "question": question, "machine": machine()}
    key = json.dumps(about, sort_keys=True)
    known = key + again * " again"
    with _lock:
        if known not in _known:
            path = folder() / f"{hashlib.blake2b(key.encode(), digest_size=12).hexdigest()}.json"
            found = None if again else _read(path, about, is_answer)
            if found is None:
                found = measure()
                _write(path, about | {"answer": found})
            _known[key] = _known[known] = found
        return _known[known]


def answers() -> dict[str, dict[str, Any]]:
    """{question: answer} that the cache folder holds for this machine; nothing is measured."""
    here, found = machine(), {}
    for path in sorted(folder().glob("*.json")):
        content = _content(path)
        if content and content.get("schema") == SCHEMA and content.get("machine") == here:
            found[str(content.get("question"))] = content.get("answer")
    return {question: known for question, known in found.items() if isinstance(known, dict)}


def forget() -> None:
    """Read the files again at the next question."""
    with _lock:
        _known.clear()


def _content(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        logger.debug("%s: measured again, since it can't be read: %s", path, error)
        return None
    return content if isinstance(content, dict) else None


def _read(path: Path, about: dict[str, Any], is_answer: Callable[[Any], bool]) -> dict[str, Any] | None:
    content = _content(path)
    if content is None:
        return None
    found = content.pop("answer", None)
    if content != about or not isinstance(found, dict) or not is_answer(found):
        logger.debug("%s: measured again, since it doesn't answer %r", path, about["question"])
        return None
    return found


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_beside(path, (json.dumps(content, indent=1) + "\n").encode())  # several processes may measure at once
    except OSError as error:
        logger.debug("%s: not kept, so every process measures: %s", path, error)


def medians(
    calls: Mapping[str, Callable[[], object]], baseline: str, seconds: float, wait: Callable[[], object] = lambda: None
) -> tuple[dict[str, float], dict[str, float]]:
    """Times of calls that do the same, and their gains over one of them.

    Calls take turns, so that what else the machine does hits all of them alike. Gains are of the fewest seconds, since
    other programs only ever add time; on a quiet machine they are those of the medians.

    Args:
        calls: {name: call}.
        baseline: name of the call that the others are compared with.
        seconds: about how long to measure; seven rounds at least, unless one takes too long.
        wait: returns when the device has done what was launched.

    Returns:
        (median s, gain over the baseline as a factor), by name.
    """
    repeats, times = {}, {name: [] for name in calls}  # type: ignore[var-annotated]
    end = time.perf_counter() + seconds
    for name, call in calls.items():
        repeats[name] = 1
        _seconds(call, 1, wait)  # warms up
        once = _seconds(call, 1, wait)
        repeats[name] = max(1, int(SHORTEST / max(once, 1e-9)))
    for turn in range(MOST_ROUNDS):
        now = time.perf_counter()
        if turn and (now > end + seconds or (turn >= LEAST_ROUNDS and now > end)):
            break
        for name, call in calls.items():
            times[name].append(_seconds(call, repeats[name], wait))
    gains = {name: min(times[baseline]) / min(own) for name, own in times.items()}
    return {name: statistics.median(own) for name, own in times.items()}, gains


def _seconds(call: Callable[[], object], repeats: int, wait: Callable[[], object]) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - start) / repeats
