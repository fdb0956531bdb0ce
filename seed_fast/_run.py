"""How a command runs: SIGINT and SIGTERM end it in order and in time, and what goes wrong is one line and an exit code.

A stop is an exception in the main thread, `Stopped`. Foreign code may swallow it, or turn it into an error of its own;
and where the main thread waits in C, for other ranks say, it doesn't even come. So the signal's arrival is remembered,
and a thread that the signal wakes up ends the process if the command doesn't.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from seed_fast._extras import explain
from seed_fast._files import OutputError
from seed_fast.report import tell

EXIT_FAILED, EXIT_USAGE, EXIT_SKIPPED = 1, 2, 3
STOPS = (signal.SIGINT, signal.SIGTERM)
GRACE = 10.0  # seconds from a stop to the end of the process: more than a batch on a CPU takes
GRACE_WHILE_WAITING = 0.5  # where this process only waits for others


class UsageError(ValueError):
    """Invalid command line; raised before any work starts (exit code 2)."""


class Stopped(BaseException):
    """SIGINT or SIGTERM came. Not an `Exception`: nothing on the way may take it for a bad image."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(
    work: Callable[[], int],
    *,
    stopped: str = "",
    memory: str = "lower --batch-size",
    usage: tuple[type[Exception], ...] = (),
) -> int:
    """Do a command's work. Returns its exit code: what `work` returns, or 1, 2, 130 or 143 after one line on stderr.

    Args:
        work: raises `UsageError` or `OutputError` for 2; `OSError`, `ValueError`, `ImportError`, `FloatingPointError`
            and `WorkerDied` for 1. Anything else is a fault of this package, and comes through.
        stopped: what the line of a stop adds, such as how to go on; without it a stop has no line.
        memory: what to do where the device has too little memory.
        usage: further exceptions that mean 2.
    """
    with _Watch(stopped) as watch:
        try:
            return work()
        except BaseException as error:
            if isinstance(error, Stopped) or watch.number is not None:
                number = error.number if isinstance(error, Stopped) else watch.number
                watch.say(number)
                return 128 + int(number or 0)
            if isinstance(error, (UsageError, OutputError, *usage)):
                return fail(error, EXIT_USAGE)
            if _is_out_of_memory(error):
                return fail(f"the device has no memory for this: {memory}", EXIT_FAILED)
            if isinstance(error, MemoryError):
                return fail(f"this machine has no memory for this: {memory}", EXIT_FAILED)
            if isinstance(error, (ValueError, OSError, ImportError, FloatingPointError)) or _is_worker_died(error):
                return fail(error, EXIT_FAILED)
            raise


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """Within it this process does nothing but wait for other ranks, in C: a stop ends it at once."""
    watch = _Watch.current
    if watch is None:
        yield
        return
    before, watch.grace = watch.grace, GRACE_WHILE_WAITING
    watch.since = time.monotonic()
    try:
        yield
    finally:
        watch.grace = before
        watch.since = time.monotonic()


@contextmanager
def stops_handled() -> Iterator[None]:
    """Within it the caller has handlers of its own, and takes the time that it needs. A second stop ends the process.

    The first is forgotten at the end.
    """
    watch = _Watch.current
    if watch is None:
        yield
        return
    before, watch.grace = watch.grace, float("inf")
    try:
        yield
    finally:
        watch.grace, watch.number, watch.count = before, None, 0


class _Watch:
    """The handlers of a command's stops, and the thread that sees to them."""

    current: _Watch | None = None

    def __init__(self, stopped: str) -> None:
        self._stopped = stopped
        self.number: int | None = None  # of the first stop
        self.count = 0
        self.grace, self.since = GRACE, 0.0

    def __enter__(self) -> _Watch:
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        # The interpreter writes a signal's number at once, whatever the main thread is doing.
        self._fd_before = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._stop) for number in STOPS}
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self._outer, _Watch.current = _Watch.current, self
        return self

    def __exit__(self, *_: object) -> None:
        _Watch.current = self._outer
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        self._mouth.close()
        self._thread.join()
        self._ear.close()

    def say(self, number: int | None) -> None:
        """The line of a stop."""
        if self._stopped:
            complain(f"stopped by {signal.Signals(number or 0).name}; {self._stopped}")

    def _stop(self, number: int, frame: FrameType | None) -> NoReturn:
        if self.number is None:
            self.number = number
        raise Stopped(number)

    def _listen(self) -> None:
        while True:
            self._ear.settimeout(0.1 if self.number is not None else None)
            try:
                heard = self._ear.recv(64)
            except TimeoutError:
                heard = None
            if heard == b"":
                return
            for number in heard or b"":
                if number in STOPS:
                    if self.number is None:
                        self.number = number
                    self.count += 1
                    if self.count == 1:
                        self.since = time.monotonic()
            if self.number is not None and (self.count > 1 or time.monotonic() - self.since > self.grace):
                self._end_process(self.number)

    def _end_process(self, number: int) -> NoReturn:
        """Without another word of the main thread. What it was writing is as after a kill: whole, or not there."""
        self.say(number)
        os._exit(128 + number)


def fail(error: object, code: int) -> int:
    """Say what went wrong, in one line. Returns the exit code."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        error = f"{error.filename}: {error.strerror}"
    elif isinstance(error, ImportError):
        error = explain(error)
    complain(f"error: {error}")
    return code


def complain(text: str) -> None:
    """One line on stderr."""
    tell(f"seed-fast: {text}")


def _is_out_of_memory(error: BaseException) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.cuda.OutOfMemoryError)


def _is_worker_died(error: BaseException) -> bool:
    from seed_fast.data.worker import WorkerDied

    return isinstance(error, WorkerDied)
