"""A worker process: its main loop, and how its parent starts it, talks to it and ends it.

A worker is a plain `python -c` that imports this file, not a child of `multiprocessing`: a script that uses workers
needs no `if __name__ == "__main__"`, nothing of the parent (torch, its threads, a GPU) is in a worker, and each has
pipes of its own, which end as soon as either side is dead. Tasks go to its standard input, answers come from its
standard output, as pickles. Workers never import torch.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from seed_fast._terminal import open_standard_streams

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
READY, BEGUN = "ready", "begun"  # the first answer, and that before the first of each task
_STOPS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 5.0  # seconds for a dying process


class WorkerDied(RuntimeError):
    """A worker process could not be started, ended by itself or was killed."""


class Process:
    """Handle of a worker process in its parent.

    Raises:
        WorkerDied: the process can't be started.
    """

    def __init__(self) -> None:
        paths = [path for path in sys.path if isinstance(path, str)]
        code = f"import sys; sys.path[:] = {paths!r}; from seed_fast.data.worker import main; main()"
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        one_thread = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")  # for the BLAS of numpy
        try:
            with _stops_blocked():
                self._process = subprocess.Popen([sys.executable, "-c", code], env=one_thread, **pipes)
        except OSError as error:
            raise WorkerDied(f"a decoding worker can't be started: {error.strerror or error}") from error
        self.pid = self._process.pid

    def wait_until_ready(self) -> None:
        """Wait until the worker takes tasks.

        Raises:
            WorkerDied: the process ended before.
        """
        if self.receive() != READY:
            raise WorkerDied(f"a decoding worker can't be started: {self.end()} before it was ready")

    def send(self, task: object) -> None:
        """Send a task. A dead worker is noticed when its answer is received."""
        content = pickle.dumps(task)
        with suppress(OSError):
            self._process.stdin.write(content)  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]

    def receive(self) -> Any:
        """Return the next answer; None if the worker is dead, also if it died within an answer."""
        try:
            return pickle.load(self._process.stdout)  # type: ignore[arg-type]
        except (EOFError, OSError, pickle.UnpicklingError):
            return None

    def kill(self) -> None:
        """Kill the worker at once, from any thread; the answer that is waited for will be None."""
        self._process.kill()

    def end(self) -> str:
        """End the worker and clean up. Returns how it ended, such as "crashed by SIGSEGV"."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)  # its pipes close before it has an exit code
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # a process that hangs in a dead file server is left to itself
            self._process.wait(_PATIENCE)
        for file in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                file.close()  # type: ignore[union-attr]
        return _how(self._process.returncode)


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    if -code == signal.SIGKILL:
        return "killed (out of memory?)"
    try:
        return f"crashed by {signal.Signals(-code).name}"
    except ValueError:
        return f"crashed by signal {-code}"


@contextmanager
def _stops_blocked() -> Iterator[None]:
    """Block Ctrl-C while a process starts, which inherits this: until it ignores Ctrl-C it would print a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main() -> None:
    """Run a worker: take (function, items), and answer each item with BEGUN and (True, result) or (False, exception).

    It ends when its parent is gone or has closed the pipe, and ignores Ctrl-C and SIGTERM, which a terminal or a
    scheduler may send to all processes of a job: the parent stops in its own way and then ends its workers.
    """
    for each in _STOPS:
        signal.signal(each, signal.SIG_IGN)
    open_standard_streams()  # standard error may be closed, and a pipe must not get its number
    tasks, answers = _own_pipes()
    _answer(answers, READY)
    received: queue.SimpleQueue[tuple[Any, list[Any]]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(tasks, received), daemon=True).start()
    while True:
        function, items = received.get()
        _answer(answers, BEGUN)
        for place, item in enumerate(items):
            items[place] = None  # the memory of an item goes with its turn
            _answer(answers, _result(function, item))
            del item


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Return standard input and output as private pipes, which nothing that prints can reach."""
    tasks, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return tasks, answers


def _receive(tasks: BinaryIO, received: queue.SimpleQueue[tuple[Any, list[Any]]]) -> None:
    """Receive tasks as they come, so that the parent never waits for a worker to take one."""
    try:
        while True:
            received.put(pickle.load(tasks))
    except (EOFError, OSError, pickle.UnpicklingError):
        os._exit(0)  # also in the midst of an image


def _result(function: Any, item: Any) -> tuple[bool, Any]:
    try:
        return True, function(item)
    except Exception as error:  # raised again in the parent  # noqa: BLE001
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 - some exceptions can't travel
            return False, RuntimeError(f"{type(error).__name__}: {error}")
        return False, error


def _answer(answers: BinaryIO, answer: object) -> None:
    try:
        pickle.dump(answer, answers)
        answers.flush()
    except OSError:  # the parent is gone
        os._exit(0)
