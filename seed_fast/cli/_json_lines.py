"""JSON lines as the output of a command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seed_fast._files import open_locked, publish, writing
from seed_fast._outputs import STDOUT
from seed_fast._terminal import ProgressBar


@contextmanager
def json_lines(output: Path, progress: ProgressBar) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that writes one record as a line of JSON.

    Lines go to standard output as they come. A file is written as <name>.partial and gets its name when the block ends
    without an exception; otherwise it is removed.

    Args:
        output: the file, or `STDOUT`.
        progress: the bar that must not share a line with standard output.

    Raises:
        OutputError: another process is writing the file.
    """
    if output == STDOUT:
        yield lambda record: progress.output(json.dumps(record))
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(output.name + ".partial")
    locked = open_locked(beside)
    try:
        locked.truncate(0)  # what a killed run has left
        with writing(output), open(locked.fileno(), "w", encoding="utf-8", closefd=False) as file:
            yield lambda record: print(json.dumps(record), file=file, flush=True)
        publish(locked, beside, output)
    finally:
        if not locked.closed:
            locked.close()
            beside.unlink(missing_ok=True)
