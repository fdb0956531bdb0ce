"""The output of a training run: metrics.jsonl, TensorBoard if asked for, and progress on stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from seed_fast._files import write_beside, writing

METRICS = "metrics.jsonl"
SECONDS_BETWEEN_LINES = 10.0


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


class TrainingProgress:
    """Shows step, loss, speed and time left: as a bar on a terminal, elsewhere as a line every ten seconds.

    Args:
        first: step at which this process starts.
        total: step at which the run ends.
        per_step: batch size.
        counted: name of what the batch size counts.
        stream: where to write; stderr by default.
    """

    def __init__(
        self, first: int, total: int, per_step: int, counted: str = "images", stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._first, self._total, self._per_step, self._counted = first, total, per_step, counted
        self._start = self._last = time.monotonic()
        self._loss = ""
        self._bar = None
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=first, unit=" steps", file=self._stream, dynamic_ncols=True)

    def per_second(self, step: int) -> float:
        """Return the speed since the start of this process, per second."""
        return (step - self._first) * self._per_step / max(1e-9, time.monotonic() - self._start)

    def values(self, step: int, values: dict[str, float]) -> None:
        """Show values: the loss beside the speed, those of a validation in a line of their own."""
        if "loss" in values:
            self._loss = f", loss {values['loss']:.4g}"
        else:
            self.line(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def advance(self, step: int) -> None:
        """Move to `step`, the number of steps done."""
        speed = self.per_second(step)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{speed:.1f} {self._counted}/s{self._loss}", refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            left = (self._total - step) * self._per_step / max(1e-9, speed)
            self.line(f"step {step}/{self._total}, {speed:.1f} {self._counted}/s{self._loss}, {_duration(left)} left")

    def line(self, text: str) -> None:
        """Write one line of text."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    """Format a duration as H:MM:SS."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
