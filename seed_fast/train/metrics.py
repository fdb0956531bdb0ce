"""The numbers that a training run records: metrics.jsonl, and TensorBoard event files if asked for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from seed_fast._files import write_beside, writing

METRICS = "metrics.jsonl"


class MetricsLog:
    """Writes `metrics.jsonl`: one JSON object per line, with "step"; numbers are written exactly.

    Args:
        folder: the run's output folder.
        step: step at which the run starts or resumes; lines of later steps are removed, as they will be written again.
        tensorboard: also write event files to `folder`/tensorboard.

    Raises:
        ImportError: `tensorboard` is given and TensorBoard isn't installed.
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool = False) -> None:
        self.path = folder / METRICS
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        write_beside(self.path, b"".join(line for line in lines if _is_until(line, step)))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by `close`)
        self._events: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError("TensorBoard event files need tensorboard: pip install 'seed_fast[train]'") from error
            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write one line without delay; infinity and NaN, which JSON lacks, become null."""
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with writing(self.path):
            self._file.write(json.dumps({"step": step, **known}) + "\n")
            self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files."""
        with writing(self.path):
            self._file.close()
        if self._events is not None:
            self._events.close()


def _is_until(line: bytes, step: int) -> bool:
    """True if this is a complete line of a step up to `step`; a kill may have cut off the last line."""
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
