"""SIGINT and SIGTERM end a run in order and in time.

A stop is an exception in the main thread, `Stopped`. Foreign code may swallow it or turn it into another error, and
Python doesn't raise it while the main thread waits in C, for example for other ranks. So the signal is remembered, and
a thread that the signal wakes up ends the process if the command doesn't end in time.
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
    """Raised on SIGINT or SIGTERM. It is no `Exception`, so that no handler takes it for a bad image."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """Mark code that only waits for other ranks, in C: there a stop ends the process at once."""
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
    """Mark code that handles stops itself and may take any time for it; a second stop still ends the process.

    The first stop is forgotten at the end of the context.
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
    """Handles stops within a `with` block; a thread ends the process if the main thread doesn't.

    Args:
        stopped: end of the message about a stop, such as how to resume; "" for no message.
    """

    current: Watch | None = None

    def __init__(self, stopped: str) -> None:
        self._stopped = stopped
        self.number: int | None = None  # signal number of the first stop
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
        """Print the message about a stop."""
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
        """End the process at once. Files that the main thread was writing are complete or absent, as after a kill."""
        self.say(number)
        os._exit(128 + number)
