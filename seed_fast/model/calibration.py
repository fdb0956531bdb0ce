"""Measure once per machine which of several ways is faster, and keep the answer in the cache folder.

A question, such as "which library multiplies float32 matrices", has a table as its answer. Its file is named after the
question and the machine: processor, instruction sets, number of threads, versions of torch and seed_fast. A file that
is damaged or about another machine is measured again; so is one that was measured while other programs were at work,
by up to `MOST_TRIES` processes, and the least disturbed answer is kept. A folder that can't be written to costs a
measurement per process. Two processes may ask at once: each writes a whole file.
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

SCHEMA = 2
# What hides instruction sets from torch, oneDNN, MKL and our kernels.
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "SEED_FAST_CPU_ISA")
LEAST_ROUNDS, MOST_ROUNDS = 7, 25
QUIET = 1.5  # median time / least time of a call, up to which nothing else seems to have disturbed it
CREDIBLE = 4  # the slowest of several ways takes at most this many times the fastest, unless it was disturbed
MOST_TRIES = 5  # processes that measure on a machine that is never quiet
SHORTEST = 2e-4  # s: a quicker call is repeated, so that the clock is no part of its time

_known: dict[str, dict[str, Any]] = {}  # answers of this process
_lock = threading.RLock()
_disturbance = 1.0  # the highest disturbance that `medians` found since `answer` began to measure


def machine() -> dict[str, Any]:
    """Return everything about the machine that an answer depends on, as JSON can hold it."""
    return {
        "processor": cpu_model(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "limits": {name: os.environ[name] for name in LIMITS if os.environ.get(name)},
        "torch": torch.__version__,
        "seed_fast": seed_fast.__version__,
        "threads": torch.get_num_threads(),
    }


def folder() -> Path:
    """Return the folder in which answers are kept: SEED_FAST_CACHE/calibration."""
    return Path(_env.get("SEED_FAST_CACHE")).expanduser() / "calibration"


def answer(
    question: str,
    measure: Callable[[], dict[str, Any]],
    is_answer: Callable[[Any], bool],
    *,
    again: bool = False,
    settled: bool = False,
) -> dict[str, Any]:
    """Return the table that answers a question on this machine; measure it where it isn't known yet.

    Args:
        question: name of the question, with everything that the answer depends on besides the machine.
        measure: measures and returns the answer, as JSON can hold it.
        is_answer: takes what a file holds and returns False if that isn't a valid answer; then it is measured again.
        again: measure now, once in this process, whatever the file says.
        settled: keep the first answer even if it was disturbed, because codes in half precision depend on it.

    Returns:
        What `measure` returned, now or earlier.
    """
    about = {"schema": SCHEMA, "question": question, "machine": machine()}
    key = json.dumps(about, sort_keys=True)
    known = key + again * " again"
    with _lock:
        if known not in _known:
            path = folder() / f"{hashlib.blake2b(key.encode(), digest_size=12).hexdigest()}.json"
            kept = None if again else _read(path, about, is_answer)
            disturbed = kept is not None and kept["disturbance"] > QUIET and kept["tries"] < MOST_TRIES
            if kept is None or (disturbed and not settled):
                kept = _measured(measure, kept)
                _write(path, about | kept)
            found = kept["answer"]
            _known[key] = _known[known] = found
        return _known[known]


def _measured(measure: Callable[[], dict[str, Any]], before: dict[str, Any] | None) -> dict[str, Any]:
    """Measure, and keep the less disturbed of this answer and the one before."""
    global _disturbance
    _disturbance = 1.0
    now = {"answer": measure(), "disturbance": round(_disturbance, 3), "tries": 1}
    if before is None:
        return now
    return min(now, before, key=lambda kept: kept["disturbance"]) | {"tries": before["tries"] + 1}


def answers() -> dict[str, dict[str, Any]]:
    """Return {question: answer} for every answer that the cache folder holds for this machine; nothing is measured."""
    here, found = machine(), {}
    for path in sorted(folder().glob("*.json")):
        content = _content(path)
        if content and content.get("schema") == SCHEMA and content.get("machine") == here:
            found[str(content.get("question"))] = content.get("answer")
    return {question: known for question, known in found.items() if isinstance(known, dict)}


def forget() -> None:
    """Forget the answers that this process holds in memory; the next question reads the files again."""
    with _lock:
        _known.clear()


def _content(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None where there is none that can be read."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        logger.debug("%s: measured again, since it can't be read: %s", path, error)
        return None
    return content if isinstance(content, dict) else None


def _read(path: Path, about: dict[str, Any], is_answer: Callable[[Any], bool]) -> dict[str, Any] | None:
    """Return the answer, its disturbance and its tries; None where the file holds no answer to this question."""
    content = _content(path)
    if content is None:
        return None
    kept = {name: content.pop(name, None) for name in ("answer", "disturbance", "tries")}
    numbers = isinstance(kept["disturbance"], (int, float)) and isinstance(kept["tries"], int)
    if content != about or not numbers or not isinstance(kept["answer"], dict) or not is_answer(kept["answer"]):
        logger.debug("%s: measured again, since it doesn't answer %r", path, about["question"])
        return None
    return kept


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_beside(path, (json.dumps(content, indent=1) + "\n").encode())  # several processes may measure at once
    except OSError as error:
        logger.debug("%s: not kept, so every process measures: %s", path, error)


def medians(
    calls: Mapping[str, Callable[[], object]], baseline: str, seconds: float, wait: Callable[[], object] = lambda: None
) -> tuple[dict[str, float], dict[str, float]]:
    """Time several calls that compute the same, and compare them with one of them.

    The calls take turns, so that other programs slow all of them alike. Gains are ratios of the shortest times, since
    other programs only ever add time; on a quiet machine ratios of medians are the same.

    Args:
        calls: {name: call}.
        baseline: name of the call that the others are compared with.
        seconds: about how long to measure, s; at least seven rounds are made, unless that takes twice as long.
        wait: blocks until the device has finished what was launched.

    Returns:
        {name: median time in s} and {name: how many times as fast as the baseline}.
    """
    repeats, times = {}, {name: [] for name in calls}  # type: ignore[var-annotated]
    end = time.perf_counter() + seconds
    # A first call warms up; a second one tells how often a call must be repeated to be timed well.
    for name, call in calls.items():
        repeats[name] = 1
        _seconds(call, 1, wait)  # warms up
        once = _seconds(call, 1, wait)
        repeats[name] = max(1, int(SHORTEST / max(once, 1e-9)))
    # Then rounds in which every call has one turn.
    for turn in range(MOST_ROUNDS):
        now = time.perf_counter()
        if turn and (now > end + seconds or (turn >= LEAST_ROUNDS and now > end)):
            break
        for name, call in calls.items():
            times[name].append(_seconds(call, repeats[name], wait))
    gains = {name: min(times[baseline]) / min(own) for name, own in times.items()}
    middle = {name: statistics.median(own) for name, own in times.items()}
    # One call may have two speeds of its own, such as before and after a page fault; a busy machine slows most of them.
    global _disturbance
    _disturbance = max(_disturbance, statistics.median(middle[name] / min(own) for name, own in times.items()))
    # Two threads that share one core for the whole time make every turn of a call slow, by hundreds of times.
    gap = max(gains.values()) / min(gains.values())
    if gap > CREDIBLE:
        _disturbance = max(_disturbance, gap)
    return middle, gains


def _seconds(call: Callable[[], object], repeats: int, wait: Callable[[], object]) -> float:
    """Return the time of one call in s, averaged over `repeats` of them."""
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - start) / repeats
