"""`seed-fast train stage2`: the quantizer, the decoders and the generation head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from seed_fast.cli import _train
from seed_fast.cli._options import command
from seed_fast.cli._run import UsageError

if TYPE_CHECKING:
    from seed_fast.train.session import TokenizerSession


@dataclass(frozen=True, kw_only=True)
class Stage2Options(_train.TokenizerOptions):
    """Options of `seed-fast train stage2`."""

    model: Annotated[str, typer.Option(help="Result of stage 1: its folder, or official files separated by commas.")]
    target: Annotated[
        str,
        typer.Option(
            help="What the generation head learns to predict: embeddings of a CLIP, as clip-image:FOLDER (SEED-2) or "
            "clip-text:FOLDER (SEED-1), or stage1-text, the output of stage 1's own text tower."
        ),
    ]
    codebook_init: Annotated[
        Literal["official", "data"],
        typer.Option(help="Initial codebook. official: random around zero. data: K-means of the first batches."),
    ] = "official"
    official_dropout: Annotated[
        bool,
        typer.Option("--official-dropout", help="Dropout in the frozen Q-Former too, as in the official code."),
    ] = False
    batch_size: _train.PairsPerStep = 16384
    epochs: _train.Epochs = 500
    lr: _train.Rate = 1e-4
    min_lr: _train.MinRate = 1e-5
    warmup_lr: _train.WarmupRate = 1e-6


@command(memory=_train.MEMORY)
def stage2(options: Stage2Options) -> int:
    """Train quantizer, decoders and generation head behind the frozen Q-Former. The defaults are the official recipe.

    SIGTERM and Ctrl-C save a checkpoint and end with exit code 0; --resume goes on from the newest checkpoint.

    \b
    Examples:
      seed-fast train stage2 --data shapes:100000 --model runs/stage1 --target stage1-text --codebook-init data \\
        --batch-size 256 --epochs 10 -o runs/stage2
      torchrun --nproc-per-node 8 --no-python seed-fast train stage2 --data 'cc3m-{0000..0331}.tar' \\
        --model runs/stage1 --target clip-image:CLIP-ViT-H-14-laion2B-s32B-b79K -o runs/stage2
    """
    if options.cache_features and options.official_dropout:
        raise UsageError("--cache-features needs a Q-Former without dropout: it can't be used with --official-dropout")
    with _train.tokenizer_session(options) as session:
        _train_stage2(session, options)
    return 0


def _train_stage2(session: TokenizerSession, options: Stage2Options) -> None:
    from seed_fast.convert.contrast import has_contrast, load_contrast
    from seed_fast.train.codebook import codebook_from_data
    from seed_fast.train.stage2 import FROZEN, Stage2
    from seed_fast.train.start import initial_tokenizer, stage1_folder
    from seed_fast.train.targets import open_target

    # The tokenizer that stage 1 has trained, and the frozen model that the head learns from.
    tok = initial_tokenizer(options.model, session.ranks.device)
    batches = session.open_data(tok.config)
    folder = stage1_folder(options.model)
    contrast = load_contrast(folder, tok) if has_contrast(folder) else None
    target = open_target(options.target, tok.config, session.ranks.device, contrast)

    # The task, with the frozen Q-Former's output from a cache if asked for.
    shape = (tok.config.num_codes, tok.config.qformer_dim)
    cache = session.cache("causal", tok, tok.causal_embeddings, shape, FROZEN)
    task = Stage2(tok, target, dropout=options.dropout, official_dropout=options.official_dropout, causal=cache)
    if options.codebook_init == "data" and session.fresh:
        codebook_from_data(tok, batches, session.ranks, seed=options.seed, causal=cache)

    if _train.train_and_tell(
        session, task, stage=2, dropout=options.dropout, target=options.target, codebook_init=options.codebook_init,
        official_dropout=options.official_dropout,
    ):  # fmt: skip
        tok.trained = True
        session.save(tok, contrast)
