"""`seed-fast train lm`. Light: torch is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from seed_fast.cli._run import run
from seed_fast.train.cli import (
    Accumulate,
    Device,
    Dtype,
    Fsdp,
    Keep,
    LogEvery,
    Precision,
    Resume,
    SaveEvery,
    Seed,
    Tensorboard,
    ValidateEvery,
    WeightDecay,
    _plain,
)  # fmt: skip


def lm(
    data: Annotated[str, typer.Option(help="Codes and text: a folder that `seed-fast tokens` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for checkpoints, metrics and the adapter.")],
    model: Annotated[
        Path,
        typer.Option(help="Folder or hub id of an OPT or LLaMA with its tokenizer, or of an adapter to go on with."),
    ],
    base: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Base of the adapter that --model is, as a folder or hub id; default: what the adapter says."
        ),
    ] = None,
    tasks: Annotated[
        str, typer.Option(help="What captions are used for, as ratios: caption, drawing, pretraining.")
    ] = "caption:1,drawing:1",
    validation: Annotated[Optional[str], typer.Option(help="Data to validate on, as --data.")] = None,  # noqa: UP045
    full: Annotated[
        bool, typer.Option("--full", help="Train every weight, from scratch if the folder has a config alone.")
    ] = False,
    rank: Annotated[int, typer.Option(min=1, help="Of a new LoRA.")] = 16,
    alpha: Annotated[float, typer.Option(help="Of a new LoRA, whose output is scaled by alpha / rank.")] = 32,
    lora_dropout: Annotated[float, typer.Option(min=0.0, max=0.99, help="Of LoRA's input.")] = 0.05,
    targets: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Names of linear layers, with commas. Default: all of a block."),
    ] = None,
    norms: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--norms/--no-norms", help="Train the norms. Default: as SEED-LLaMA for LLaMA, not for OPT."),
    ] = None,
    codebook: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="SEED tokenizer: codes go in as one linear layer of its codebook vectors, as in the paper."),
    ] = None,
    any_tokenizer: Annotated[
        bool,
        typer.Option(
            "--any-tokenizer", help="Go on although --model, --codebook or --output has codes of another tokenizer."
        ),
    ] = False,
    length: Annotated[int, typer.Option(min=8, help="Tokens of a row; longer samples are left out.")] = 1024,
    packing: Annotated[bool, typer.Option("--packing/--padding", help="Several samples to a row, or one.")] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per step, over all ranks and micro-batches.")] = 64,
    accumulate: Accumulate = 4,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of the run.")] = 30_000,
    lr: Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")] = 1.5e-4,
    min_lr: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.0, help="Learning rate at the end of the cosine. Default: 0.05 of the highest."),
    ] = None,
    warmup_steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Steps from 0 to the highest. Default: 0.03 of all."),
    ] = None,
    weight_decay: WeightDecay = 0.05,
    clip: Annotated[float, typer.Option(min=0.0, help="Largest norm of the gradient; 0: no limit.")] = 1.0,
    dtype: Dtype = Precision.auto,
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations", help="Less memory for a third more work; see --estimate.")
    ] = False,
    seed: Seed = 42,
    device: Device = "auto",
    log_every: LogEvery = 10,
    save_every: SaveEvery = 500,
    validate_every: ValidateEvery = 0,
    keep: Keep = 3,
    resume: Resume = False,
    fsdp: Fsdp = False,
    tensorboard: Tensorboard = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say what the run needs and how fast it will be, and end.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="With --estimate: as JSON on stdout.")] = False,
) -> None:
    """Train a language model to see and draw: LoRA and image words on a frozen model. The defaults are SEED-LLaMA's.

    The output is a plain adapter of peft, with its tokenizer. SIGTERM saves and exits 0; after any end, --resume goes
    on.

    \b
    Examples:
      seed-fast train lm --data captions/ --model opt-2.7b --tasks caption:1 -o runs/stage-a --estimate
      torchrun --nproc-per-node 8 --no-python seed-fast train lm --data captions/ --model opt-2.7b -o runs/seed-opt
      seed-fast train lm --data shapes/ --model tiny-opt/ --full --length 256 --batch-size 16 -o runs/seed-opt-tiny
    """
    given = dict(locals())

    def work() -> int:
        from seed_fast.train import lm_command

        return lm_command.train_lm(lm_command.LmOptions(**_plain(given)))

    raise typer.Exit(run(work))
