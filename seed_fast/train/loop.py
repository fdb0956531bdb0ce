"""The one training loop of the package.

A task is a module whose forward maps a batch to {"loss": [], other terms: []}, all scalars. Optionally it has
`metrics() -> dict`, further numbers for the log, and `validate(batches) -> dict`, measures of the model. Everything
else is here: precision, accumulation, clipping, moving average, schedule, log, validation, checkpoints, resume,
signals, ranks.

A run that was killed at any moment resumes to the same weights, bit by bit on the same CPU: random numbers are seeded
at each step from (seed, step, rank), and the data has an exact position.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seed_fast._files import OutputError
from seed_fast._stops import stops_handled
from seed_fast._terminal import ProgressBar
from seed_fast.distributed import Ranks, is_sharded, sharded_like, synchronise, trainable, whole, wrap
from seed_fast.model import vit
from seed_fast.model.cpu_products import TRAINING_ADVICE, warn_of_slow_half
from seed_fast.model.dtypes import DTYPE_BY_NAME
from seed_fast.train import checkpoint, sharded
from seed_fast.train.batches import Batch, Batches, endless
from seed_fast.train.metrics import MetricsLog
from seed_fast.train.optimizer import MovingAverage, adamw, begin_states
from seed_fast.train.recipe import Recipe, Run

LEAST_SCALE = 2.0**-10  # of the float16 loss; if steps fail even there, their gradients are NaN at any scale


class Loop:
    """One training run.

    Args:
        task: the module to train, on `ranks.device`.
        batches: batches of this rank, with `recipe.micro_batch(ranks.world)` samples each.
        recipe: what the result depends on.
        run: where to save, and how often.
        ranks: this process among all.
        validation: batches for `task.validate`; None for no validation.
        about: further options that the result depends on; checkpoints contain them, and a resume compares them.
        units: classes of modules that FSDP2 shards and gathers as units.
        loss_scale: float16's initial loss scale, and the number of steps without an overflow until it doubles.
        gives_up: True ends a float16 run whose loss isn't finite at the least loss scale; False keeps skipping steps.
        counted: name of what `recipe.batch_size` counts, for the log.
        in_parts: write checkpoints of a sharded task in parts, so that no rank holds it whole.
        fill: is called with a task on the meta device once it is sharded, and gives it its values.

    Raises:
        OutputError: the output holds another run's checkpoints, and `run.resume` is off.
        ValueError: a checkpoint was written under another recipe.
    """

    def __init__(
        self,
        task: nn.Module,
        batches: Batches,
        recipe: Recipe,
        run: Run,
        ranks: Ranks,
        *,
        validation: Batches | None = None,
        about: dict[str, Any] | None = None,
        units: tuple[type[nn.Module], ...] = (vit.Block,),
        loss_scale: tuple[float, int] = (2.0**16, 2000),
        gives_up: bool = True,
        counted: str = "images",
        fill: Callable[[nn.Module], None] | None = None,
        in_parts: bool = False,
    ) -> None:
        self.task: Any = task  # a module that may have the two optional methods
        self.batches, self.validation = batches, validation
        self.recipe, self.run, self.ranks = recipe, run, ranks
        # Converted to JSON and back, so that it can be compared with that of a checkpoint.
        self._about = json.loads(json.dumps({**asdict(recipe), **(about or {})}))
        self._module = wrap(task, ranks, fsdp=run.fsdp, units=units)
        if fill is not None:
            fill(task)
        self.optimizer = adamw(task, recipe.weight_decay, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps)
        self.scaler = torch.amp.GradScaler(
            ranks.device.type, loss_scale[0], growth_interval=loss_scale[1], enabled=recipe.dtype == "float16"
        )
        self.average = MovingAverage(task, recipe.ema) if recipe.ema else None
        self._counted, self._gives_up, self._in_parts = counted, gives_up, in_parts
        self.step = 0
        self._stop = False
        self._restore()

    def __call__(self) -> bool:
        """Train to the end, or until SIGTERM or SIGINT, which save and stop. True if the end was reached."""
        total = self.recipe.schedule.steps
        with ExitStack() as stack:
            # Log and progress, on the first rank; signals and data, on all.
            log = progress = None
            if self.ranks.rank == 0:
                log = MetricsLog(self.run.output, self.step, tensorboard=self.run.tensorboard)
                size = self.recipe.batch_size
                progress = ProgressBar(total=total * size, unit=self._counted, done=self.step * size)
                stack.callback(log.close)
                stack.callback(progress.close)
            stack.enter_context(stops_handled())
            stack.enter_context(self._stopping_signals())
            stream = endless(self.batches)
            warn_of_slow_half(self.ranks.device, DTYPE_BY_NAME[self.recipe.dtype], TRAINING_ADVICE)
            while self.step < total:
                # A step, and what is due after it: log, validation, checkpoint.
                terms = self.train_step(stream)
                self.step += 1
                if progress:
                    progress.advance(self.recipe.batch_size)
                done, save = self.step == total, self._is_due(self.run.save_every)
                if done or save or self._is_due(self.run.log_every):
                    self._report(self._values(terms), log, progress)
                if self.validation is not None and (done or self._is_due(self.run.validate_every)):
                    self._report(self._validate(), log, progress)
                stop = self.ranks.any(self._stop)
                if done or save or stop:
                    self.save()
                if stop:
                    break
        return self.step == total

    def _report(self, values: dict[str, float], log: MetricsLog | None, progress: ProgressBar | None) -> None:
        """Write values to the log and show them; only the first rank has a log.

        The loss stands beside the speed, a validation's values in a line of their own.
        """
        if log is None or progress is None:
            return
        log.write(self.step, {**values, f"{self._counted}_per_s": progress.per_second()})
        if "loss" in values:
            tokens = f", {values['tokens_per_s']:.0f} tokens/s" if "tokens_per_s" in values else ""
            progress.note(f"step {self.step} of {self.recipe.schedule.steps}: loss {values['loss']:.4g}{tokens}")
        else:
            progress.line(f"step {self.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def train_step(self, stream: Iterator[Batch]) -> dict[str, Tensor]:
        """Run one optimizer step on the next micro-batches. Returns the terms, averaged over micro-batches."""
        recipe, device = self.recipe, self.ranks.device
        torch.manual_seed(_seed(recipe.seed, self.step, self.ranks.rank))
        rate = recipe.schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

        # Forward and backward of each micro-batch; gradients are exchanged in the last one.
        sums: dict[str, Tensor] = {}
        for number in range(recipe.accumulate):
            batch = {
                key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
                for key, value in next(stream).items()
            }
            is_last = number == recipe.accumulate - 1
            with synchronise(self._module, is_last)():
                with torch.autocast(device.type, DTYPE_BY_NAME[recipe.dtype], enabled=recipe.dtype != "float32"):
                    terms = self._module(batch)
                self.scaler.scale(terms["loss"] / recipe.accumulate).backward()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach() / recipe.accumulate

        # The update, which the scaler skips where gradients overflowed in float16.
        if recipe.clip:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_([p for _, p in trainable(self.task)], recipe.clip)
            sums["gradient_norm"] = whole(norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if not self._gives_up and self.scaler.get_scale() < LEAST_SCALE:
            self.scaler.update(LEAST_SCALE)
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.task)
        return sums

    def _values(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """Return the values for the log, averaged over ranks.

        Raises:
            FloatingPointError: the loss isn't finite; no checkpoint of such weights is written.
        """
        values = self.ranks.mean({name: value.to(torch.float64) for name, value in terms.items()})
        is_float16 = self.scaler.is_enabled()
        if not math.isfinite(values["loss"]) and (not is_float16 or self.scaler.get_scale() < LEAST_SCALE):
            raise FloatingPointError(f"step {self.step}: the loss must be finite, got {values['loss']}")
        values["lr"] = self.recipe.schedule(self.step - 1)
        if is_float16:
            values["loss_scale"] = self.scaler.get_scale()
        return values | (self.task.metrics() if hasattr(self.task, "metrics") else {})

    def _is_due(self, every: int) -> bool:
        """True after every `every` steps; 0 is never."""
        return every > 0 and self.step % every == 0

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Return what the task measures in eval mode, with the averaged weights if there are any."""
        self.task.eval()
        if self.average:
            self.average.swap(self.task)
        try:
            with torch.autocast(
                self.ranks.device.type, DTYPE_BY_NAME[self.recipe.dtype], enabled=self.recipe.dtype != "float32"
            ):
                values = self.task.validate(self.validation)
        finally:
            if self.average:
                self.average.swap(self.task)
            self.task.train()
            if hasattr(self.task, "reshard"):  # FSDP2 would keep the gathered weights, which may be averages
                self.task.reshard()
        return {f"validation_{name}": value for name, value in values.items()}

    def save(self) -> None:
        """Write a checkpoint. Every rank must call."""
        state = {
            "step": self.step,
            "recipe": self._about,
            "loss_scale": self.scaler.state_dict(),
            "data": self.ranks.of_all(self.batches.state_dict()),
        }
        if self._in_parts and is_sharded(self.task) and sharded.can_write_parts():
            with ExitStack() as stack:
                staging = checkpoint.staging_of(self.run.checkpoints, self.step)
                if self.ranks.rank == 0:
                    named = checkpoint.staged(self.run.checkpoints, self.step, state, self.run.keep)
                    stack.enter_context(named)
                self.ranks.from_first(None)  # waits until the folder exists
                sharded.write_parts(staging, self._parts())  # returns on all ranks together
            return
        tensors = {
            "model": checkpoint.model_tensors(self.task),
            "optimizer": checkpoint.optimizer_tensors(self.task, self.optimizer),
        }
        if self.average:
            tensors["average"] = {name: whole(value) for name, value in self.average.average.items()}
        if self.ranks.rank == 0:
            checkpoint.write(self.run.checkpoints, self.step, tensors, state, self.run.keep)

    def _parts(self) -> dict[str, Tensor]:
        """Return all tensors of a checkpoint by name, as this rank holds them."""
        parameters = dict(trainable(self.task))
        tensors = {f"model/{name}": p.detach() for name, p in parameters.items()}
        tensors |= {f"model/{name}": buffer for name, buffer in self.task.named_buffers()}
        for name, p in parameters.items():
            tensors |= {f"optimizer.{key}/{name}": value for key, value in self.optimizer.state.get(p, {}).items()}
        if self.average:
            tensors |= {f"average/{name}": value for name, value in self.average.average.items()}
        return tensors

    def _restore(self) -> None:
        """Load the newest checkpoint, if there is one."""
        path = self.ranks.from_first(checkpoint.latest(self.run.checkpoints))
        if self.ranks.rank == 0:
            self.run.output.mkdir(parents=True, exist_ok=True)
        if path is None:
            return
        if not self.run.resume:
            raise OutputError(f"{path}: left by an earlier run; resume=True goes on with it, or give another output")

        # The step and all tensors, in parts or whole.
        state = checkpoint.read_state(path)
        _compare(self._about, state["recipe"], path)
        self.step = state["step"]
        if sharded.has_parts(path):
            begin_states(self.optimizer)
            sharded.read_parts(path, self._parts())
        else:
            checkpoint.load_model(self.task, checkpoint.read_tensors(path, "model"), source=path)
            checkpoint.load_optimizer(self.task, self.optimizer, checkpoint.read_tensors(path, "optimizer"))
            if self.average:
                average = checkpoint.read_tensors(path, "average")
                for name, value in self.average.average.items():
                    value.copy_(sharded_like(average[name], value))
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["loss_scale"])

        # The position in the data: each rank's own, or that of all if the number of ranks has changed.
        positions = state["data"]
        if len(positions) != self.ranks.world and any(each != positions[0] for each in positions):
            raise ValueError(
                f"{path}: the data position differs between its {len(positions)} ranks: resume with as many, "
                f"got {self.ranks.world}"
            )
        self.batches.load_state_dict(positions[self.ranks.rank if len(positions) == self.ranks.world else 0])

    @contextmanager
    def _stopping_signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT end the loop after the step; a second one ends the process at once."""

        def stop(number: int, frame: Any) -> None:
            self._stop = True
            for each in before:
                signal.signal(each, signal.SIG_DFL)

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _seed(*parts: int) -> int:
    """Hash numbers to a seed of 63 bits."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _compare(now: dict[str, Any], then: dict[str, Any], path: Path) -> None:
    """Refuse to resume with other options than those of the checkpoint."""
    for name in [*now, *(name for name in then if name not in now)]:
        if now.get(name) != then.get(name):
            raise ValueError(
                f"{path}: {name} must stay {then.get(name)!r}, as the run began with, got {now.get(name)!r}"
            )
