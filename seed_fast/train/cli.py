"""`seed-fast train stage1` and `stage2`, and options that all trainers share. Light: torch comes when one runs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from seed_fast.cli._run import run

app = typer.Typer(
    help="Train a tokenizer: stage1 (causal Q-Former, by contrast), then stage2 (quantizer and decoders); or lm.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Precision(str, Enum):
    """In what a step computes; weights and optimizer are float32."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Cosine(str, Enum):
    """How often the learning rate changes after the warmup."""

    epoch = "epoch"
    step = "step"


class CodebookInit(str, Enum):
    """Where the codebook begins."""

    official = "official"
    data = "data"


Data = Annotated[
    str,
    typer.Option(
        help="Pictures with captions: a folder, tar shards ('train-{000..099}.tar'), a list (.json, .jsonl, .tsv), or "
        "shapes:COUNT, a generated world."
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for checkpoints, metrics and the trained model.")]
Validation = Annotated[Optional[str], typer.Option(help="Data to validate on, as --data.")]  # noqa: UP045
ValidationSplit = Annotated[str, typer.Option(help="Its split, where it has such: train, val or test.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pairs per step, over all ranks and micro-batches.")]
Accumulate = Annotated[int, typer.Option(min=1, help="Micro-batches per step.")]
Epochs = Annotated[int, typer.Option(min=1)]
EpochSteps = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="Steps that count as an epoch. Default: as many as the data has."),
]
Rate = Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")]
MinRate = Annotated[float, typer.Option(min=0.0, help="Learning rate at the end.")]
WarmupRate = Annotated[float, typer.Option(min=0.0, help="Learning rate at the start.")]
WarmupSteps = Annotated[int, typer.Option(min=0, help="Steps from there to the highest.")]
CosineBy = Annotated[Cosine, typer.Option(help="The cosine falls once per epoch, as official, or at every step.")]
WeightDecay = Annotated[float, typer.Option(min=0.0, help="Of matrices; biases, norms and scalars have none.")]
Clip = Annotated[Optional[float], typer.Option(help="Largest norm of the gradient. Default: no limit.")]  # noqa: UP045
Dtype = Annotated[Precision, typer.Option(help="auto: float16 on a GPU, as official, and float32 on a CPU.")]
Ema = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="Decay of a moving average of the weights, which then is the result. Default: none."),
]
Dropout = Annotated[float, typer.Option(min=0.0, max=0.99, help="Of the BERT parts that are trained.")]
Seed = Annotated[int, typer.Option(help="Of initial weights, data order and dropout.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes per rank that read and decode.")]
Augment = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option("--augment/--no-augment", help="Random crops and flips, as official. Default: not with a cache."),
]
CacheFeatures = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folder in which the features of frozen parts are kept, so that they are computed once."),
]
LogEvery = Annotated[int, typer.Option(min=1, help="Steps between lines of metrics.jsonl.")]
SaveEvery = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
ValidateEvery = Annotated[int, typer.Option(min=0, help="Steps between validations; 0: after the last step alone.")]
Keep = Annotated[int, typer.Option(min=1, help="Checkpoints to keep.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint, if there is one.")]
Fsdp = Annotated[bool, typer.Option("--fsdp", help="Shard parameters over the ranks (FSDP2; torch >= 2.6).")]
Tensorboard = Annotated[bool, typer.Option("--tensorboard", help="Also write event files for TensorBoard.")]


@app.command()
def stage1(
    data: Data,
    output: Output,
    model: Annotated[
        str,
        typer.Option(help="Initial weights of a preset (seed-tiny, seed-2) or a config.json; or a checkpoint."),
    ],
    init: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="Official file to start from: eva_vit_g.pth, blip2_pretrained.pth. May be given again."),
    ] = None,
    bert: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="bert-base-uncased, as a folder or hub id: tokenizer and weights of the text tower. "
            "Default: words of the captions."
        ),
    ] = None,
    projection_dim: Annotated[int, typer.Option(min=1, help="Width of the space of the contrast.")] = 256,
    max_tokens: Annotated[
        int, typer.Option(min=3, max=512, help="Tokens of a caption; the rest of a longer one is cut off.")
    ] = 32,
    label_smoothing: Annotated[float, typer.Option(min=0.0, max=0.99)] = 0.1,
    official_gather: Annotated[
        bool, typer.Option("--official-gather", help="Gather the other ranks' features without gradients, as official.")
    ] = False,
    train_vision: Annotated[bool, typer.Option("--train-vision", help="Train the image encoder too.")] = False,
    validation: Validation = None,
    validation_split: ValidationSplit = "val",
    batch_size: BatchSize = 4096,
    accumulate: Accumulate = 1,
    epochs: Epochs = 10,
    epoch_steps: EpochSteps = None,
    lr: Rate = 3e-5,
    min_lr: MinRate = 3e-6,
    warmup_lr: WarmupRate = 3e-7,
    warmup_steps: WarmupSteps = 2000,
    cosine: CosineBy = Cosine.epoch,
    weight_decay: WeightDecay = 0.05,
    clip: Clip = None,
    dtype: Dtype = Precision.auto,
    ema: Ema = None,
    dropout: Dropout = 0.1,
    seed: Seed = 42,
    device: Device = "auto",
    workers: Workers = 2,
    augment: Augment = None,
    cache_features: CacheFeatures = None,
    log_every: LogEvery = 10,
    save_every: SaveEvery = 500,
    validate_every: ValidateEvery = 0,
    keep: Keep = 3,
    resume: Resume = False,
    fsdp: Fsdp = False,
    tensorboard: Tensorboard = False,
) -> None:
    """Train the causal Q-Former by image-text contrast. The defaults are the official recipe.

    SIGTERM saves and exits 0; after any end, --resume goes on.

    \b
    Examples:
      seed-fast train stage1 --data shapes:100000 --model seed-tiny --train-vision --batch-size 256 -o runs/stage1
      torchrun --nproc-per-node 8 --no-python seed-fast train stage1 --data 'cc3m-{0000..0331}.tar' --model seed-2 \\
        --init eva_vit_g.pth --init blip2_pretrained.pth --bert bert-base-uncased -o runs/stage1
    """
    given = dict(locals())

    def work() -> int:
        from seed_fast.train import command, options

        names = ("init", "bert", "projection_dim", "max_tokens", "label_smoothing", "official_gather", "train_vision")
        extra = {name: given.pop(name) for name in names}
        extra["init"] = tuple(extra["init"] or ())
        shared = options.TrainOptions(**_plain(given))
        return command.train_stage1(shared, options.Stage1Options(**extra))

    raise typer.Exit(run(work))


@app.command()
def stage2(
    data: Data,
    output: Output,
    model: Annotated[str, typer.Option(help="What stage 1 left: its folder, or official files separated by commas.")],
    target: Annotated[
        str,
        typer.Option(
            help="What the head learns to make: clip-image:FOLDER (SEED-2), clip-text:FOLDER (SEED-1) of a CLIP, "
            "or stage1-text, stage 1's own text tower."
        ),
    ],
    codebook_init: Annotated[
        CodebookInit, typer.Option(help="official: around zero. data: K-means of the first batches.")
    ] = CodebookInit.official,
    official_dropout: Annotated[
        bool,
        typer.Option("--official-dropout", help="Dropout in the frozen Q-Former too, as in the official code."),
    ] = False,
    validation: Validation = None,
    validation_split: ValidationSplit = "val",
    batch_size: BatchSize = 16384,
    accumulate: Accumulate = 1,
    epochs: Epochs = 500,
    epoch_steps: EpochSteps = None,
    lr: Rate = 1e-4,
    min_lr: MinRate = 1e-5,
    warmup_lr: WarmupRate = 1e-6,
    warmup_steps: WarmupSteps = 2000,
    cosine: CosineBy = Cosine.epoch,
    weight_decay: WeightDecay = 0.05,
    clip: Clip = None,
    dtype: Dtype = Precision.auto,
    ema: Ema = None,
    dropout: Dropout = 0.1,
    seed: Seed = 42,
    device: Device = "auto",
    workers: Workers = 2,
    augment: Augment = None,
    cache_features: CacheFeatures = None,
    log_every: LogEvery = 10,
    save_every: SaveEvery = 500,
    validate_every: ValidateEvery = 0,
    keep: Keep = 3,
    resume: Resume = False,
    fsdp: Fsdp = False,
    tensorboard: Tensorboard = False,
) -> None:
    """Train quantizer, decoders and generation head behind the frozen Q-Former. The defaults are the official recipe.

    SIGTERM saves and exits 0; after any end, --resume goes on.

    \b
    Examples:
      seed-fast train stage2 --data shapes:100000 --model runs/stage1 --target stage1-text --codebook-init data \\
        --batch-size 256 --epochs 10 -o runs/stage2
      torchrun --nproc-per-node 8 --no-python seed-fast train stage2 --data 'cc3m-{0000..0331}.tar' \\
        --model runs/stage1 --target clip-image:CLIP-ViT-H-14-laion2B-s32B-b79K -o runs/stage2
    """
    given = dict(locals())

    def work() -> int:
        from seed_fast.train import command, options

        extra = {name: given.pop(name) for name in ("target", "codebook_init", "official_dropout")}
        return command.train_stage2(options.TrainOptions(**_plain(given)), options.Stage2Options(**_plain(extra)))

    raise typer.Exit(run(work))


def _plain(given: dict[str, Any]) -> dict[str, Any]:
    """Choices as their strings."""
    return {name: value.value if isinstance(value, Enum) else value for name, value in given.items()}
