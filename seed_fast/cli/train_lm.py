"""`seed-fast train lm`: a language model learns to read and write the codes of images."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seed_fast.cli._checks import tokenizers_match, usage
from seed_fast.cli._options import AsJson, command, command_line
from seed_fast.cli._run import UsageError
from seed_fast.cli._train import MEMORY, Accumulate, Rate, TrainOptions, check_not_begun, messages, pick, run_option

if TYPE_CHECKING:
    from torch import Tensor

    from seed_fast.data.tokens import TokenizerIdentity, TokenStore
    from seed_fast.distributed import Ranks
    from seed_fast.lm.estimate import RunEstimate
    from seed_fast.lm.model import Lora
    from seed_fast.train.recipe import Recipe, Run

MIN_LR_SHARE, WARMUP_SHARE = 0.05, 0.03  # of --lr and of --steps, as official
LOCAL = ("device", "resume", "estimate", "as_json")  # options that say nothing about the result


@dataclass(frozen=True, kw_only=True)
class LmOptions(TrainOptions):
    """Options of `seed-fast train lm`. The defaults are those of official SEED-LLaMA's pretraining configs."""

    data: Annotated[str, typer.Option(help="Codes and text: a folder that `seed-fast tokens` wrote.")]
    model: Annotated[
        Path,
        typer.Option(help="Folder or hub id of an OPT or LLaMA with its tokenizer, or of an adapter to train further."),
    ]
    base: Annotated[
        Path | None,
        typer.Option(
            help="Base of the adapter that --model is, as a folder or hub id; default: the one that the adapter names."
        ),
    ] = None
    tasks: Annotated[
        str,
        typer.Option(
            help="What captioned images are used for, as ratios. caption: from image to text. drawing: from text to "
            "image. pretraining: either order, without a prompt."
        ),
    ] = "caption:1,drawing:1"
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Train every weight instead of an adapter; from scratch if --model is a folder without weights.",
        ),
    ] = False
    rank: Annotated[int, typer.Option(min=1, help="Rank of a new LoRA.")] = 16
    alpha: Annotated[float, typer.Option(help="Scale of a new LoRA, whose output is multiplied by alpha / rank.")] = 32
    lora_dropout: Annotated[float, typer.Option(min=0.0, max=0.99, help="Dropout of LoRA's input.")] = 0.05
    targets: Annotated[
        str | None,
        typer.Option(
            help="Names of the linear layers that LoRA adapts, separated by commas. Default: all in each block."
        ),
    ] = None
    norms: Annotated[
        bool | None,
        typer.Option(
            "--norms/--no-norms",
            help="Train the norms too. Default: yes for LLaMA, as SEED-LLaMA does, and no for OPT.",
        ),
    ] = None
    codebook: Annotated[
        str | None,
        typer.Option(
            help="SEED tokenizer whose codebook gives the input embeddings of codes, through one trained linear layer, "
            "as in the paper. Default: the embedding of each code is trained by itself."
        ),
    ] = None
    any_tokenizer: Annotated[
        bool,
        typer.Option(
            "--any-tokenizer", help="Go on although --model, --codebook or --output has codes of another tokenizer."
        ),
    ] = False
    length: Annotated[int, typer.Option(min=8, help="Tokens of a row; longer samples are left out.")] = 1024
    packing: Annotated[
        bool, typer.Option("--packing/--padding", help="Put several samples into a row, or one and padding.")
    ] = True
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per step, over all ranks and micro-batches.")] = 64
    accumulate: Accumulate = 4
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of the run.")] = 30_000
    lr: Rate = 1.5e-4
    min_lr: Annotated[
        float | None,
        typer.Option(min=0.0, help="Learning rate at the end of the cosine. Default: 0.05 of the highest."),
    ] = None
    warmup_steps: Annotated[
        int | None, typer.Option(min=0, help="Steps in which the learning rate rises from 0. Default: 0.03 of all.")
    ] = None
    clip: Annotated[float, typer.Option(min=0.0, help="Largest norm of the gradient; 0: no limit.")] = 1.0
    checkpoint_activations: Annotated[
        bool,
        typer.Option(
            "--checkpoint-activations",
            help="Recompute activations in the backward pass: less memory, a third more work.",
        ),
    ] = False
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print how much memory the run needs and how fast it will be, and end.")
    ] = False
    as_json: AsJson = False


class NoRoom(ValueError):
    """The run doesn't fit the device (exit code 1)."""


@command(memory=MEMORY)
def lm(options: LmOptions) -> int:
    """Train a language model to see and draw: LoRA and image tokens on a frozen model. The defaults are SEED-LLaMA's.

    The output is a plain adapter of peft, with its tokenizer. SIGTERM and Ctrl-C save a checkpoint and end with exit
    code 0; --resume goes on from the newest checkpoint.

    \b
    Examples:
      seed-fast train lm --data captions/ --model opt-2.7b --tasks caption:1 -o runs/stage-a --estimate
      torchrun --nproc-per-node 8 --no-python seed-fast train lm --data captions/ --model opt-2.7b -o runs/seed-opt
      seed-fast train lm --data shapes/ --model tiny-opt/ --full --length 256 --batch-size 16 -o runs/seed-opt-tiny
    """
    device, run, dtype = run_option(options)
    from seed_fast.distributed import joined
    from seed_fast.lm.batches import parse_tasks

    with usage():  # before anything is loaded
        recipe, lora, tasks = _recipe(options, dtype), _lora(options), parse_tasks(options.tasks)
    _check_adapter(options)
    with joined(device) as ranks:
        with usage():
            recipe.micro_batch(ranks.world)
        _train(options, recipe, run, lora, tasks, ranks)
    return 0


def _recipe(options: LmOptions, dtype: str) -> Recipe:
    from seed_fast.train.recipe import Recipe

    return pick(
        Recipe, options, dtype=dtype, epochs=1, epoch_steps=options.steps, cosine="step", betas=(0.9, 0.95), eps=1e-5,
        min_lr=MIN_LR_SHARE * options.lr if options.min_lr is None else options.min_lr, warmup_lr=0.0,
        warmup_steps=round(WARMUP_SHARE * options.steps) if options.warmup_steps is None else options.warmup_steps,
        clip=options.clip or None,
    )  # fmt: skip


def _lora(options: LmOptions) -> Lora | None:
    """Return the settings of the adapter that is trained: a new one, or that of --model; None with --full."""
    from seed_fast.lm.model import Lora
    from seed_fast.lm.pretrained import is_adapter

    if options.full:
        return None
    if is_adapter(options.model):
        return Lora.of_folder(options.model)
    targets = tuple(options.targets.split(",")) if options.targets else None
    return Lora(options.rank, options.alpha, options.lora_dropout, targets, options.norms)


def _check_adapter(options: LmOptions) -> None:
    """Refuse options that a new adapter, an adapter as --model and --full don't have in common."""
    from seed_fast.lm.pretrained import is_adapter

    with usage():
        has_adapter = is_adapter(options.model)
    if options.full and options.codebook:
        raise UsageError("--codebook is a way of an adapter: it can't be used with --full")
    if options.base is not None and not has_adapter:
        raise UsageError(f"--base is the base of an adapter, and --model {options.model} is none")
    if has_adapter and (options.full or options.codebook):
        raise UsageError("--full and --codebook need a model, and --model is an adapter: merge it first")


def _train(
    options: LmOptions, recipe: Recipe, run: Run, lora: Lora | None, tasks: dict[str, float], ranks: Ranks
) -> None:
    import torch
    import transformers

    from seed_fast.data.tokens import open_tokens
    from seed_fast.lm.estimate import estimate_folder
    from seed_fast.model.dtypes import DTYPE_BY_NAME
    from seed_fast.train.session import held_output

    # First, whether codes, model and device fit each other.
    note, dtype, rows = messages(ranks), DTYPE_BY_NAME[recipe.dtype], recipe.micro_batch(ranks.world)
    source = open_tokens(options.data)
    codebook = _check_tokenizers(options, source.tokenizer, note)
    needs = estimate_folder(
        options.model, options.base, codebook_size=source.codebook_size, lora=lora, dtype=dtype,
        tokens=rows * options.length, device=ranks.device, world=ranks.world, fsdp=options.fsdp,
        local_world=int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world)), checkpointed=options.checkpoint_activations,
    )  # fmt: skip
    if options.estimate and options.as_json:
        if ranks.rank == 0:
            print(json.dumps(needs.to_dict()))
    else:
        for line in estimate_lines(needs):
            note(line)
    if (problem := refusal(needs)) is not None:
        raise NoRoom(problem)
    if options.estimate:
        return

    with held_output(run.output, ranks):
        check_not_begun(run)
        transformers.utils.logging.disable_progress_bar()
        torch.manual_seed(options.seed)
        _train_and_save(options, recipe, run, lora, tasks, ranks, source, codebook)


def _train_and_save(
    options: LmOptions, recipe: Recipe, run: Run, lora: Lora | None, tasks: dict[str, float], ranks: Ranks,
    source: TokenStore, codebook: Tensor | None,
) -> None:  # fmt: skip
    from seed_fast.data.tokens import open_tokens
    from seed_fast.lm.batches import SampleSource, SequenceBatches
    from seed_fast.lm.card import training_facts
    from seed_fast.lm.image_tokenizer import write_identity
    from seed_fast.lm.model import save
    from seed_fast.model.dtypes import DTYPE_BY_NAME
    from seed_fast.train.lm import LOSS_SCALE, LOSS_SCALE_WINDOW
    from seed_fast.train.lm_start import start_task
    from seed_fast.train.loop import Loop
    from seed_fast.train.metrics import METRICS

    note = messages(ranks)

    # The model, and batches in its vocabulary.
    task, language, fill = start_task(
        options.model, ranks, output=run.output, codebook_size=source.codebook_size, lora=lora, full=options.full,
        base=options.base, codebook=codebook, dtype=DTYPE_BY_NAME[recipe.dtype],
        checkpoint_activations=options.checkpoint_activations, fsdp=options.fsdp,
    )  # fmt: skip

    def batches(data: SampleSource, **how: Any) -> SequenceBatches:
        return SequenceBatches(
            data, language.vocabulary, language.tokenizer, batch_size=recipe.micro_batch(ranks.world),
            length=options.length, packing=options.packing, tasks=tasks, seed=options.seed, rank=ranks.rank,
            world=ranks.world, **how,
        )  # fmt: skip

    validation = None
    if options.validation:
        validation = batches(open_tokens(options.validation), shuffle=False, drop_last=False)

    # The loop, whose record in checkpoints holds what the result depends on.
    about = {"model": str(options.model), "lora": asdict(lora) if lora else None, "codebook": options.codebook}
    loop = Loop(
        task, batches(source), recipe, run, ranks, validation=validation, about=about, units=task.blocks,
        loss_scale=(LOSS_SCALE, LOSS_SCALE_WINDOW), gives_up=False, counted="rows", fill=fill, in_parts=True,
    )  # fmt: skip
    if ranks.rank == 0:  # not before it is known that the folder is this run's
        write_identity(run.output, source.tokenizer)
    note(
        f"{options.steps} steps of {recipe.batch_size} rows of {options.length} tokens, in {recipe.dtype}, "
        f"from step {loop.step}"
    )
    if not loop():
        note(f"stopped at step {loop.step} with a checkpoint; --resume goes on")
        return

    # What the run leaves: adapter or model, tokenizer and model card.
    about_run = None
    if ranks.rank == 0:
        called = command_line("train lm", options, without=LOCAL)
        about_run = training_facts(options.data, source.kinds, options.tasks, called, run.output / METRICS)
    save(
        task.model, language.tokenizer, run.output, extra=task.folded(), write=ranks.rank == 0,
        identity=source.tokenizer, about=about_run,
    )  # fmt: skip
    note(f"done: {run.output}")


def _check_tokenizers(options: LmOptions, codes: TokenizerIdentity, note: Callable[[str], None]) -> Tensor | None:
    """Refuse a model, an output or a validation set with codes of another tokenizer than the data's.

    Returns:
        The codebook [K, d] of --codebook, if it is given.
    """
    from seed_fast import SeedTokenizer
    from seed_fast.data.tokens import TokenizerIdentity, open_tokens
    from seed_fast.lm.image_tokenizer import check_identity, read_identity
    from seed_fast.lm.pretrained import read_tokenizer
    from seed_fast.lm.vocabulary import END

    def check(folder: str | Path, given: TokenizerIdentity, what: str, **learned: TokenizerIdentity) -> None:
        with tokenizers_match():
            check_identity(folder, given, what, anyway=options.any_tokenizer, note=note, **learned)

    store = f"--data {options.data}"
    if options.validation:
        held_out = open_tokens(options.validation).tokenizer
        check(store, held_out, f"--validation {options.validation}", learned=codes)
    if END in read_tokenizer(options.model).get_vocab():  # it has learned codes before
        check(options.model, codes, store)
    if options.resume and read_identity(options.output):
        check(options.output, codes, store)
    if options.codebook is None:
        return None
    tok = SeedTokenizer.from_pretrained(options.codebook)
    identity = TokenizerIdentity.of_tokenizer(tok, options.codebook)
    check(store, identity, f"--codebook {options.codebook}", learned=codes)
    return tok.quantizer.codebook.detach()


def estimate_lines(needs: RunEstimate) -> list[str]:
    """Return the lines that --estimate prints: parameters, memory by use, and speed."""
    from seed_fast.lm.estimate import REACHED

    kept, other, which = needs.activations, needs.activations_checkpointed, "with"
    if needs.checkpointed:
        kept, other, which = other, kept, "without"
    return [
        f"{needs.parameters:,} parameters, of which {needs.trainable:,} learn",
        f"memory per device: {_size(needs.total)} of {_size(needs.available)}: weights {_size(needs.weights)}, "
        f"gradients {_size(needs.gradients)}, optimizer {_size(needs.optimizer)}, activations {_size(kept)} "
        f"({_size(other)} {which} --checkpoint-activations), logits {_size(needs.logits)}",
        f"memory of each machine, beside its devices': {_size(needs.host_loading)} while the model is read, "
        f"{_size(needs.host_saving)} while a checkpoint is written",
        f"about {needs.tokens_per_s:,.0f} tokens/s, at {REACHED:.0%} of the measured rate of matrix products",
    ]


def refusal(needs: RunEstimate) -> str | None:
    """Return a line that says how much memory is missing and which options would help; None if everything fits."""
    if needs.fits:
        return None
    saved = "" if needs.checkpointed else ", --checkpoint-activations"
    return (
        f"the run needs {_size(needs.total)} per device, and there are {_size(needs.available)}: "
        f"try a higher --accumulate, a shorter --length{saved} or --fsdp"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
