"""What a training run shows: metrics.jsonl, TensorBoard where it is asked for, and progress on stderr."""

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
    """`metrics.jsonl`: one JSON object per line, with "step"; numbers are written so that they read back to the bit.

    Args:
        folder: of the run.
        step: where the run goes on; lines of later steps, which it will write again, are dropped.
        tensorboard: write event files to `folder`/tensorboard too.

    Raises:
        ImportError: TensorBoard is asked for and not installed.
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
        """One line, at once on its way to the file; infinity and NaN, which JSON lacks, as null."""
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with writing(self.path):
            self._file.write(json.dumps({"step": step, **known}) + "\n")
            self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """End both."""
        with writing(self.path):
            self._file.close()
        if self._events is not None:
            self._events.close()


def _is_until(line: bytes, step: int) -> bool:
    """Whether it is a whole line of a step up to `step`; a kill may have torn the last one."""
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


class Progress:
    """A bar on a terminal, a plain line every ten seconds elsewhere: step, loss, images/s, time left."""

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
        """Since the start of this process."""
        return (step - self._first) * self._per_step / max(1e-9, time.monotonic() - self._start)

    def values(self, step: int, values: dict[str, float]) -> None:
        """New numbers: the loss goes beside the speed, a validation gets a line of its own."""
        if "loss" in values:
            self._loss = f", loss {values['loss']:.4g}"
        else:
            self.line(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def advance(self, step: int) -> None:
        """`step` steps are done."""
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
        """One line of text."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
