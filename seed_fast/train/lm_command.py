"""What `seed-fast train lm` does: options to model, data and recipe, then the loop, then the folder."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from seed_fast import SeedTokenizer
from seed_fast.commands import UsageError, _device
from seed_fast.data.tokens import TokenizerIdentity, TokenStore, open_tokens
from seed_fast.distributed import Ranks
from seed_fast.lm.batches import SampleSource, SequenceBatches, parse_tasks
from seed_fast.lm.estimate import Estimate, estimate
from seed_fast.lm.folder import UNTIED, is_adapter, read_config, read_tokenizer
from seed_fast.lm.identity import check_identity, read_identity, write_identity
from seed_fast.lm.model import LanguageModel, Lora, build, build_empty, save
from seed_fast.lm.vocabulary import END, Vocabulary
from seed_fast.train import lm_cli, sharded
from seed_fast.train.command import _guarded, _usage, hold_output
from seed_fast.train.lm import LOSS_SCALE, LOSS_SCALE_WINDOW, LanguageModelTask
from seed_fast.train.loop import Loop
from seed_fast.train.recipe import DTYPES, Recipe, Run

METRICS = "metrics.jsonl"  # of the loop


class NoRoom(ValueError):
    """The run doesn't fit the device."""


@dataclass(frozen=True)
class LmOptions:
    """The options of `seed-fast train lm`, as given; the command line has their help."""

    data: str
    output: Path
    model: Path
    base: Path | None
    tasks: str
    validation: str | None
    full: bool
    rank: int
    alpha: float
    lora_dropout: float
    targets: str | None
    norms: bool | None
    codebook: str | None
    any_tokenizer: bool
    length: int
    packing: bool
    batch_size: int
    accumulate: int
    steps: int
    lr: float
    min_lr: float | None
    warmup_steps: int | None
    weight_decay: float
    clip: float
    dtype: str
    checkpoint_activations: bool
    seed: int
    device: str
    log_every: int
    save_every: int
    validate_every: int
    keep: int
    resume: bool
    fsdp: bool
    tensorboard: bool
    estimate: bool
    json: bool

    def lora(self) -> Lora | None:
        """The adapter, if there is one: a new one, or that of --model."""
        if self.full:
            return None
        if is_adapter(self.model):
            return Lora.of_folder(self.model)
        targets = tuple(self.targets.split(",")) if self.targets else None
        return Lora(self.rank, self.alpha, self.lora_dropout, targets, self.norms)

    def recipe(self, device: torch.device) -> Recipe:
        """What the result depends on. Defaults as official SEED-LLaMA: its pretraining configs."""
        dtype = self.dtype
        if dtype == "auto":
            dtype = "float16" if device.type == "cuda" else "float32"
        floor = 0.05 * self.lr if self.min_lr is None else self.min_lr
        warmup = round(0.03 * self.steps) if self.warmup_steps is None else self.warmup_steps
        return Recipe(
            batch_size=self.batch_size, epochs=1, epoch_steps=self.steps, lr=self.lr, min_lr=floor, warmup_lr=0.0,
            warmup_steps=warmup, cosine="step", weight_decay=self.weight_decay, betas=(0.9, 0.95), eps=1e-5,
            clip=self.clip or None, dtype=dtype, accumulate=self.accumulate, seed=self.seed,  # type: ignore[arg-type]
        )  # fmt: skip

    def run(self) -> Run:
        """Where to, and how often what."""
        return Run(
            self.output, self.log_every, self.save_every, self.validate_every, self.keep, self.resume, self.fsdp,
            self.tensorboard,
        )  # fmt: skip


def train_lm(options: LmOptions) -> int:
    """Run `seed-fast train lm`. Returns the exit code."""
    return _guarded(lambda held: _train(options, held))


def _train(options: LmOptions, held: ExitStack) -> None:
    device = _device(options.device)
    with _usage():
        recipe, run, lora, tasks = options.recipe(device), options.run(), options.lora(), parse_tasks(options.tasks)
        if options.full and options.codebook:
            raise UsageError("--codebook is a way of an adapter: it can't be used with --full")
        if options.base is not None and not is_adapter(options.model):
            raise UsageError(f"--base is the base of an adapter, and --model {options.model} is none")
        if is_adapter(options.model) and (options.full or options.codebook):
            raise UsageError("--full and --codebook need a model, and --model is an adapter: merge it first")
    ranks = Ranks.join(device)
    with _usage():
        rows = recipe.micro_batch(ranks.world)
    source = open_tokens(options.data)
    codebook = _check_tokenizers(options, source.tokenizer, ranks)
    found = _estimate(options, recipe, source.codebook_size, rows * options.length, ranks)
    if ranks.rank == 0:
        _show(found, options.json and options.estimate)
    if (refusal := found.refusal()) is not None:
        raise NoRoom(refusal)
    if options.estimate:
        return
    hold_output(options.output, ranks, held)
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(options.seed)
    in_parts = options.full and options.fsdp and ranks.world > 1
    if in_parts:
        language = build_empty(options.model, codebook_size=source.codebook_size)
    else:
        language = _build(options, source.codebook_size, lora, DTYPES[recipe.dtype], ranks)
    task = LanguageModelTask(
        language, checkpoint_activations=options.checkpoint_activations, codebook=codebook
    )  # fmt: skip
    fill: Callable[[torch.nn.Module], None] | None = None
    if in_parts:
        wholes = [_whole_model(options, source.codebook_size) if ranks.rank == 0 else None]
        if wholes[0] is not None:
            language.model.config, language.model.generation_config = wholes[0].config, wholes[0].generation_config

        def fill(task: torch.nn.Module) -> None:  # and let go of the whole model
            sharded.fill(task, language.model, wholes.pop(), device)

    else:
        task.to(device)

    def batches(data: SampleSource, **how: bool) -> SequenceBatches:
        return SequenceBatches(
            data, language.vocabulary, language.tokenizer, batch_size=rows, length=options.length,
            packing=options.packing, tasks=tasks, seed=options.seed, rank=ranks.rank, world=ranks.world, **how,
        )  # fmt: skip

    validation = None
    if options.validation:
        validation = batches(open_tokens(options.validation), shuffle=False, drop_last=False)
    about = {"model": str(options.model), "lora": asdict(lora) if lora else None, "codebook": options.codebook}
    loop = Loop(
        task, batches(source), recipe, run, ranks, validation=validation, about=about, units=task.blocks,
        loss_scale=(LOSS_SCALE, LOSS_SCALE_WINDOW), gives_up=False, counted="rows", fill=fill, in_parts=True,
    )  # fmt: skip
    if ranks.rank == 0:  # for a resumed run; not before it is known that the folder is this run's
        write_identity(options.output, source.tokenizer)
    _say(ranks, f"{options.steps} steps of {recipe.batch_size} rows of {options.length} tokens, in {recipe.dtype}, "
                f"from step {loop.step}")  # fmt: skip
    if not loop():
        _say(ranks, f"stopped at step {loop.step} with a checkpoint; --resume goes on")
        return
    save(
        task.model, language.tokenizer, options.output, extra=task.folded(), write=ranks.rank == 0,
        identity=source.tokenizer, about=_about(options, source) if ranks.rank == 0 else None,
    )  # fmt: skip
    _say(ranks, f"done: {options.output}")


def _estimate(options: LmOptions, recipe: Recipe, codebook_size: int, tokens: int, ranks: Ranks) -> Estimate:
    config, tokenizer = read_config(options.model, options.base), read_tokenizer(options.model)
    words = len(tokenizer)
    if END in tokenizer.get_vocab():
        words -= len(Vocabulary.of_tokenizer(tokenizer).new_ids)
    return estimate(
        config, words=words, codebook_size=codebook_size, lora=options.lora(), dtype=DTYPES[recipe.dtype],
        tokens=tokens, device=ranks.device, world=ranks.world, fsdp=options.fsdp,
        local_world=int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world)),
        checkpointed=options.checkpoint_activations,
    )  # fmt: skip


def _build(
    options: LmOptions, codebook_size: int, lora: Lora | None, dtype: torch.dtype, ranks: Ranks
) -> LanguageModel:
    """The model. An untied base is written by the first rank, before the others look."""
    untied = options.output / UNTIED if options.codebook else None
    made = None
    for turn in (True, False):
        if (ranks.rank == 0) == turn:
            made = build(
                options.model, codebook_size=codebook_size, lora=lora, full=options.full, dtype=dtype,
                device=ranks.device, untied=untied, base=options.base,
            )  # fmt: skip
        ranks.from_first(None)
    assert made is not None
    return made


def _whole_model(options: LmOptions, codebook_size: int) -> Any:
    """The model as one process would train it: rank 0 alone holds it, until all ranks have their parts."""
    return build(options.model, codebook_size=codebook_size, full=True).model


def _check_tokenizers(options: LmOptions, codes: TokenizerIdentity, ranks: Ranks) -> Tensor | None:
    """All that the options name must belong to the tokenizer of the store. Returns the codebook [K, d] of --codebook.

    Raises:
        OtherTokenizer: something doesn't.
    """
    strict: dict[str, Any] = {"anyway": options.any_tokenizer, "note": lambda line: _say(ranks, line)}
    store = f"--data {options.data}"
    if options.validation:
        held_out = open_tokens(options.validation).tokenizer
        check_identity(store, held_out, f"--validation {options.validation}", learned=codes, **strict)
    if END in read_tokenizer(options.model).get_vocab():  # it has learned codes before
        check_identity(options.model, codes, store, **strict)
    if options.resume and read_identity(options.output):
        check_identity(options.output, codes, store, **strict)
    if options.codebook is None:
        return None
    tok = SeedTokenizer.from_pretrained(options.codebook)
    identity = TokenizerIdentity.of_tokenizer(tok, options.codebook)
    check_identity(store, identity, f"--codebook {options.codebook}", learned=codes, **strict)
    return tok.quantizer.codebook.detach()


def _about(options: LmOptions, source: TokenStore) -> dict[str, str]:
    """What the model card says of a finished training."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in source.kinds.items() if count)
    facts = {"Data": f"`{options.data}`: {kinds}; trained on {options.tasks}", "Made by": f"`{_command(options)}`"}
    last: dict[str, float] = {}
    for line in (options.output / METRICS).read_text(encoding="utf-8").splitlines():
        last |= {name: value for name, value in json.loads(line).items() if isinstance(value, (int, float))}
    found = {name: last[name] for name in ("loss", "validation_loss", "validation_perplexity") if name in last}
    named = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in found.items())
    facts["Metrics"] = f"{named} at step {last['step']:.0f}" if named else "not measured"
    return facts


def _command(options: LmOptions) -> str:
    """The command line that the options are, without those that have their defaults or are of this machine alone."""
    words = ["seed-fast", "train", "lm"]
    for name, parameter in inspect.signature(lm_cli.lm).parameters.items():
        value, default = getattr(options, name), parameter.default
        default = getattr(default, "value", default)
        if value == default or name in ("device", "resume", "estimate", "json"):
            continue
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else {"packing": "--padding"}.get(name, f"--no-{name}"))
        else:
            words += [option, str(value)]
    return shlex.join(words)


def _show(found: Estimate, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
        return
    for line in found.lines():
        print(f"seed-fast: {line}", file=sys.stderr, flush=True)


def _say(ranks: Ranks, text: str) -> None:
    """A line on stderr, once."""
    if ranks.rank == 0:
        print(f"seed-fast: {text}", file=sys.stderr, flush=True)
