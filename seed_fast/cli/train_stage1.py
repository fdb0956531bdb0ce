"""`seed-fast train stage1`: the causal Q-Former, by image-text contrast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seed_fast.cli import _train
from seed_fast.cli._options import command
from seed_fast.cli._run import UsageError

if TYPE_CHECKING:
    from seed_fast.train.session import TokenizerSession


@dataclass(frozen=True, kw_only=True)
class Stage1Options(_train.TokenizerOptions):
    """Options of `seed-fast train stage1`."""

    model: Annotated[
        str,
        typer.Option(
            help="Preset (seed-tiny, seed-2) or config.json, for new weights; or a trained tokenizer, to train further."
        ),
    ]
    init: Annotated[
        tuple[Path, ...],
        typer.Option(
            help="Official file to take weights from: eva_vit_g.pth, blip2_pretrained.pth. Give it once per file."
        ),
    ] = ()
    bert: Annotated[
        Path | None,
        typer.Option(
            help="bert-base-uncased, as a folder or hub id: tokenizer and weights of the text tower. "
            "Default: a vocabulary of the captions' words, and initial weights."
        ),
    ] = None
    projection_dim: Annotated[
        int, typer.Option(min=1, help="Width of the embeddings that are compared: of images and of captions.")
    ] = 256
    max_tokens: Annotated[
        int, typer.Option(min=3, max=512, help="Tokens of a caption; the rest of a longer one is cut off.")
    ] = 32
    label_smoothing: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="Share of the contrastive target that is spread over all pairs.")
    ] = 0.1
    official_gather: Annotated[
        bool,
        typer.Option(
            "--official-gather",
            help="Compare with features of other ranks without gradients through them, as in the official code.",
        ),
    ] = False
    train_vision: Annotated[bool, typer.Option("--train-vision", help="Train the image encoder too.")] = False
    batch_size: _train.PairsPerStep = 4096
    epochs: _train.Epochs = 10
    lr: _train.Rate = 3e-5
    min_lr: _train.MinRate = 3e-6
    warmup_lr: _train.WarmupRate = 3e-7


@command(memory=_train.MEMORY)
def stage1(options: Stage1Options) -> int:
    """Train the causal Q-Former by image-text contrast. The defaults are the official recipe.

    SIGTERM and Ctrl-C save a checkpoint and end with exit code 0; --resume goes on from the newest checkpoint.

    \b
    Examples:
      seed-fast train stage1 --data shapes:100000 --model seed-tiny --train-vision --batch-size 256 -o runs/stage1
      torchrun --nproc-per-node 8 --no-python seed-fast train stage1 --data 'cc3m-{0000..0331}.tar' --model seed-2 \\
        --init eva_vit_g.pth --init blip2_pretrained.pth --bert bert-base-uncased -o runs/stage1
    """
    if options.cache_features and options.train_vision:
        raise UsageError("--cache-features needs a frozen image encoder: it can't be used with --train-vision")
    with _train.tokenizer_session(options) as session:
        _train_stage1(session, options)
    return 0


def _train_stage1(session: TokenizerSession, options: Stage1Options) -> None:
    from seed_fast.distributed import gather_with_gradient, gather_without_gradient
    from seed_fast.train.stage1 import Stage1
    from seed_fast.train.start import initial_contrast, initial_tokenizer, load_official

    # The model: a tokenizer, the text tower beside it, and the weights of official files.
    tok = initial_tokenizer(options.model, session.ranks.device)
    session.open_data(tok.config)
    model, captions = initial_contrast(
        session, tok, options.model, bert=options.bert, projection_dim=options.projection_dim,
        max_tokens=options.max_tokens,
    )  # fmt: skip
    for path in options.init:
        missing = load_official(model, path)
        session.note(f"{path}: taken over; {len(missing)} tensors of stage 1 are not in it and keep their weights")

    # The task, with the frozen image encoder's features from a cache if asked for.
    cache = session.cache("vit", tok, tok.vit_features, (tok.config.num_tokens, tok.config.vit_dim), ("vit",))
    task = Stage1(
        model, captions, label_smoothing=options.label_smoothing, dropout=options.dropout,
        gather=gather_without_gradient if options.official_gather else gather_with_gradient,
        train_vision=options.train_vision, features=cache,
    )  # fmt: skip

    if _train.train_and_tell(
        session, task, stage=1, dropout=options.dropout, train_vision=options.train_vision,
        label_smoothing=options.label_smoothing, official_gather=options.official_gather,
        max_tokens=captions.max_tokens,
    ):  # fmt: skip
        session.save(tok, (model, captions))
