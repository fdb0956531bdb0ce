"""The one place where an error of a command becomes a line on stderr and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from seed_fast._extras import explain
from seed_fast._files import OutputError
from seed_fast._stops import Stopped, Watch
from seed_fast._terminal import complain

EXIT_FAILED, EXIT_USAGE, EXIT_SKIPPED = 1, 2, 3


class UsageError(ValueError):
    """Invalid command line; raised before any work starts (exit code 2)."""


def run(
    work: Callable[[], int],
    *,
    stopped: str = "",
    memory: str = "lower --batch-size",
) -> int:
    """Run the work of a command and return its exit code: that of `work`, or 1, 2, 130 or 143 after a line on stderr.

    Args:
        work: raises `UsageError` or `OutputError` for 2; `OSError`, `ValueError`, `ImportError`, `FloatingPointError`
            and `WorkerDied` for 1. Anything else is a fault of this package, and comes through.
        stopped: end of the line that is printed on SIGINT or SIGTERM, such as how to resume; "": print no line.
        memory: advice for the case that memory runs out.
    """
    with Watch(stopped) as watch:
        try:
            return work()
        except BaseException as error:
            if isinstance(error, Stopped) or watch.number is not None:
                number = error.number if isinstance(error, Stopped) else watch.number
                watch.say(number)
                return 128 + int(number or 0)
            if isinstance(error, (UsageError, OutputError)):
                return fail(error, EXIT_USAGE)
            if _is_out_of_memory(error):
                return fail(f"the device has no memory for this: {memory}", EXIT_FAILED)
            if isinstance(error, MemoryError):
                return fail(f"this machine has no memory for this: {memory}", EXIT_FAILED)
            if isinstance(error, (ValueError, OSError, ImportError, FloatingPointError)) or _is_worker_died(error):
                return fail(error, EXIT_FAILED)
            raise


def fail(error: object, code: int) -> int:
    """Print an error as one line on stderr and return the exit code."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        error = f"{error.filename}: {error.strerror}"
    elif isinstance(error, ImportError):
        error = explain(error)
    complain(f"error: {error}")
    return code


def _is_out_of_memory(error: BaseException) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.cuda.OutOfMemoryError)


def _is_worker_died(error: BaseException) -> bool:
    from seed_fast.data.worker import WorkerDied

    return isinstance(error, WorkerDied)
