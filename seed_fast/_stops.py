"""SIGINT and SIGTERM end a run in order and in time.

A stop is an exception in the main thread, `Stopped`. Foreign code may swallow it, or turn it into an error of its own;
and where the main thread waits in C, for other ranks say, it doesn't even come. So the signal's arrival is remembered,
and a thread that the signal wakes up ends the process if the command doesn't.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from seed_fast._terminal import complain

STOPS = (signal.SIGINT, signal.SIGTERM)
GRACE = 10.0  # seconds from a stop to the end of the process: more than a batch on a CPU takes
GRACE_WHILE_WAITING = 0.5  # where this process only waits for others


class Stopped(BaseException):
    """SIGINT or SIGTERM came. Not an `Exception`: nothing on the way may take it for a bad image."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """Within it this process does nothing but wait for other ranks, in C: a stop ends it at once."""
    watch = Watch.current
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
    watch = Watch.current
    if watch is None:
        yield
        return
    before, watch.grace = watch.grace, float("inf")
    try:
        yield
    finally:
        watch.grace, watch.number, watch.count = before, None, 0


class Watch:
    """Handles stops within a `with` block, beside a thread that ends the process where the main thread doesn't.

    Args:
        stopped: what the line about a stop adds, such as how to resume; without it there is no line.
    """

    current: Watch | None = None

    def __init__(self, stopped: str) -> None:
        self._stopped = stopped
        self.number: int | None = None  # of the first stop
        self.count = 0
        self.grace, self.since = GRACE, 0.0

    def __enter__(self) -> Watch:
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        # The interpreter writes a signal's number at once, whatever the main thread is doing.
        self._fd_before = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._stop) for number in STOPS}
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self._outer, Watch.current = Watch.current, self
        return self

    def __exit__(self, *_: object) -> None:
        Watch.current = self._outer
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
