"""Options and checks that the three trainers share: `seed-fast train stage1`, `stage2` and `lm`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from seed_fast._terminal import complain
from seed_fast.cli._checks import device_option, folder_option, usage
from seed_fast.cli._options import Device
from seed_fast.cli._run import UsageError

if TYPE_CHECKING:
    import torch

    from seed_fast.distributed import Ranks
    from seed_fast.train.recipe import Run
    from seed_fast.train.session import TokenizerSession

MEMORY = "raise --accumulate, or lower --batch-size"

PairsPerStep = Annotated[int, typer.Option(min=1, help="Pairs per step, over all ranks and micro-batches.")]
Accumulate = Annotated[int, typer.Option(min=1, help="Micro-batches per step; more of them need less memory.")]
Epochs = Annotated[int, typer.Option(min=1, help="Epochs of the run.")]
Rate = Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")]
MinRate = Annotated[float, typer.Option(min=0.0, help="Learning rate at the end.")]
WarmupRate = Annotated[float, typer.Option(min=0.0, help="Learning rate at the start.")]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of every trainer."""

    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for checkpoints, metrics and the trained model.")
    ]
    validation: Annotated[str | None, typer.Option(help="Data to validate on, in any form that --data takes.")] = None
    accumulate: Accumulate = 1
    weight_decay: Annotated[
        float, typer.Option(min=0.0, help="AdamW's weight decay of matrices; biases, norms and scalars have none.")
    ] = 0.05
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"],
        typer.Option(
            help="Type of a step's computations; what is trained is float32. "
            "auto: float16 on a GPU, as in the official code, and float32 on a CPU."
        ),
    ] = "auto"
    seed: Annotated[int, typer.Option(help="Seed of initial weights, data order and dropout.")] = 42
    device: Device = "auto"
    log_every: Annotated[int, typer.Option(min=1, help="Steps between lines of metrics.jsonl.")] = 10
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500
    validate_every: Annotated[
        int, typer.Option(min=0, help="Steps between validations; 0: only after the last step.")
    ] = 0
    keep: Annotated[int, typer.Option(min=1, help="Number of checkpoints to keep: the newest.")] = 3
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint, or start if there is none.")
    ] = False
    fsdp: Annotated[
        bool, typer.Option("--fsdp", help="Shard parameters over the processes of torchrun (FSDP2; torch >= 2.6).")
    ] = False
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write event files for TensorBoard.")] = False


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions(TrainOptions):
    """Options of both stages of training a tokenizer. A stage adds its own, and those whose defaults differ."""

    data: Annotated[
        str,
        typer.Option(
            help="Images with captions: a folder, tar shards ('train-{000..099}.tar'), a list (.json, .jsonl, .tsv), "
            "or shapes:COUNT, a generated world."
        ),
    ]
    model: str
    validation_split: Annotated[
        str, typer.Option(help="Split of --validation, where it has splits: train, val or test.")
    ] = "val"
    epoch_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Optimizer steps per epoch. Default: as many as it takes to see all data once."),
    ] = None
    warmup_steps: Annotated[int, typer.Option(min=0, help="Steps in which the learning rate rises to the highest.")] = (
        2000
    )
    cosine: Annotated[
        Literal["epoch", "step"],
        typer.Option(
            help="How often the learning rate falls: once per epoch, as in the official code, or at every step."
        ),
    ] = "epoch"
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient. Default: no limit.")] = None
    ema: Annotated[
        float | None,
        typer.Option(
            help="Decay of a moving average of the weights, which is then saved as the result. Default: none."
        ),
    ] = None
    dropout: Annotated[float, typer.Option(min=0.0, max=0.99, help="Dropout of the BERT parts that are trained.")] = 0.1
    workers: Annotated[int, typer.Option(min=0, help="Processes per rank that read and decode.")] = 2
    augment: Annotated[
        bool | None,
        typer.Option(
            "--augment/--no-augment",
            help="Random crops and flips, as in the official code. Default: yes, but not with --cache-features.",
        ),
    ] = None
    cache_features: Annotated[
        Path | None,
        typer.Option(help="Folder in which the output of frozen parts is kept, so that it is computed once per image."),
    ] = None


def pick(kind: Callable[..., T], options: object, **others: Any) -> T:
    """Make a `kind`, a dataclass, of the options that are called as its fields are, and of `others`."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in vars(options).items() if name in names} | others)


def run_option(options: TrainOptions) -> tuple[torch.device, Run, str]:
    """Return the device, the settings of saving and logging, and the name of the type that the run computes in."""
    from seed_fast.train.recipe import Run

    output = folder_option("--output", options.output)
    device = device_option(options.device)
    with usage():
        run = pick(Run, options, output=output)
    half = "float16" if device.type == "cuda" else "float32"
    return device, run, half if options.dtype == "auto" else options.dtype


def check_not_begun(run: Run) -> None:
    """Refuse, without --resume, a folder in which an earlier run has left checkpoints."""
    from seed_fast.train import checkpoint

    path = checkpoint.latest(run.checkpoints)
    if path is not None and not run.resume:
        raise UsageError(f"{path}: left by an earlier run; --resume goes on with it, or give another --output")


def messages(ranks: Ranks) -> Callable[[str], None]:
    """Return a function that writes a line on stderr; on all ranks but the first it does nothing."""
    return complain if ranks.rank == 0 else lambda text: None


@contextmanager
def tokenizer_session(options: TokenizerOptions) -> Iterator[TokenizerSession]:
    """Check what both stages share, join the other ranks and hold the output folder, for the block."""
    device, run, dtype = run_option(options)
    from seed_fast.distributed import joined
    from seed_fast.train.recipe import Recipe
    from seed_fast.train.session import PairData, TokenizerSession, held_output

    with usage():  # before anything is loaded
        recipe = pick(Recipe, options, dtype=dtype, epoch_steps=options.epoch_steps or 1)
    if options.cache_features:
        folder_option("--cache-features", options.cache_features)
    if options.cache_features and options.augment:
        raise UsageError("--cache-features keeps one view of each image: it can't be used with --augment")
    with joined(device) as ranks:
        with usage():
            recipe.micro_batch(ranks.world)
        with held_output(run.output, ranks):
            check_not_begun(run)
            yield TokenizerSession(
                recipe, run, pick(PairData, options), ranks, epoch_steps=options.epoch_steps, note=messages(ranks)
            )


def train_and_tell(session: TokenizerSession, task: Any, **about: Any) -> bool:
    """Run the loop. True if it has reached its end, otherwise a line says how to continue."""
    if session.train(task, **about):
        return True
    session.note(f"stopped at step {session.step} with a checkpoint; --resume goes on")
    return False
