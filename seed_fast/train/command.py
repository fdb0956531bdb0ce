"""What `seed-fast train stage1` and `stage2` do: options to models, data and recipe, then the loop, then the folder."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from seed_fast._files import OutputError, locked_folder, remove_leftovers
from seed_fast._hub import hub_id, language_model_folder
from seed_fast.cli._run import run
from seed_fast.commands import UsageError, _device
from seed_fast.convert.contrast import has_contrast, load_contrast, save_contrast
from seed_fast.convert.files import TensorFile
from seed_fast.convert.folder import write_folder
from seed_fast.convert.names import VIT_PREFIX
from seed_fast.convert.source import checkpoint_folder
from seed_fast.convert.stage1 import load_bert, load_official_stage1
from seed_fast.data.pairs import Pairs, open_pairs
from seed_fast.distributed import Ranks, gather_with_gradient, gather_without_gradient, leave, whole
from seed_fast.lm.folder import UNTIED
from seed_fast.model.captions import VOCABULARY, BertCaptions, CaptionTokenizer, WordTokenizer
from seed_fast.model.config import PRESETS, SeedConfig
from seed_fast.model.identity import checksum
from seed_fast.model.stage1 import Stage1Model
from seed_fast.model.tokenizer import SeedTokenizer
from seed_fast.train import checkpoint
from seed_fast.train.codebook import codebook_from_data
from seed_fast.train.features import FeatureCache
from seed_fast.train.loop import Loop
from seed_fast.train.options import Stage1Options, Stage2Options, TrainOptions
from seed_fast.train.recipe import DTYPES, Recipe
from seed_fast.train.stage1 import Stage1
from seed_fast.train.stage2 import FROZEN, Stage2
from seed_fast.train.targets import open_target

CAPTIONS_FOR_VOCABULARY = 20_000
BERT_POSITIONS = 512  # rows of BERT's position embedding


class _Session:
    """What both stages set up alike."""

    def __init__(self, options: TrainOptions, held: ExitStack) -> None:
        self.options = options
        device = _device(options.device)
        with _usage():  # before anything is loaded
            recipe, self.run = options.recipe(None, device), options.run()
        if options.cache_features and options.augment:
            raise UsageError("--cache-features keeps one view of each picture: it can't be used with --augment")
        self.ranks = Ranks.join(device)
        with _usage():
            recipe.micro_batch(self.ranks.world)
        hold_output(self.run.output, self.ranks, held)
        self.fresh = self.ranks.from_first(checkpoint.latest(self.run.checkpoints) is None)
        torch.manual_seed(options.seed)

    def batches(self, config: SeedConfig) -> tuple[Pairs, Pairs | None, Recipe]:
        """Training batches, validation batches if asked for, and the recipe they lead to."""
        options, ranks = self.options, self.ranks
        size = options.recipe(None, ranks.device).micro_batch(ranks.world)
        common: dict[str, Any] = {"image_size": config.image_size, "resize": config.resize, "batch_size": size}
        common |= {"rank": ranks.rank, "world": ranks.world, "workers": options.workers, "seed": options.seed}
        augment = not options.cache_features if options.augment is None else options.augment
        training = open_pairs(options.data, augment=augment, **common)
        validation = None
        if options.validation:
            validation = open_pairs(options.validation, split=options.validation_split, **common)
        return training, validation, options.recipe(training, ranks.device)

    def cache(
        self, name: str, tok: SeedTokenizer, compute: Callable[..., torch.Tensor], shape: tuple[int, ...], *parts: str
    ) -> FeatureCache | None:
        """The feature cache, if asked for: `compute` maps pixels to [B, *shape] by the `parts` of `tok`."""
        options = self.options
        if options.cache_features is None:
            return None
        recipe = options.recipe(None, self.ranks.device)
        about = {"weights": checksum(*(tok.get_submodule(part) for part in parts)), "features": name}
        about |= {"image_size": tok.config.image_size, "resize": tok.config.resize}
        return FeatureCache(
            options.cache_features, lambda batch: compute(batch["pixels"]), shape=shape, dtype=DTYPES[recipe.dtype],
            about=about, rank=self.ranks.rank,
        )  # fmt: skip

    def say(self, text: str) -> None:
        """A line on stderr, once."""
        if self.ranks.rank == 0:
            print(f"seed-fast: {text}", file=sys.stderr, flush=True)

    def train(
        self, task: torch.nn.Module, batches: Pairs, validation: Pairs | None, recipe: Recipe, **about: Any
    ) -> bool:
        """Run the loop. Returns whether it came to its end."""
        about |= {"data": self.options.data, "dropout": self.options.dropout}
        loop = Loop(task, batches, recipe, self.run, self.ranks, validation=validation, about=about)
        self.say(
            f"{recipe.schedule.steps} steps of {recipe.batch_size} pairs, in {recipe.dtype}, from step {loop.step}"
        )
        done = loop()
        if loop.average and done:
            loop.average.swap(task)  # what the run leaves behind is the average
        batches.close()
        if skipped := sum(self.ranks.of_all(batches.skipped)):
            self.say(f"{skipped} times a sample could not be used, and another one took its place")
        if not done:
            self.say(f"stopped at step {loop.step} with a checkpoint; --resume goes on")
        return done


def train_stage1(options: TrainOptions, extra: Stage1Options) -> int:
    """Run `seed-fast train stage1`. Returns the exit code."""
    return _guarded(lambda held: _stage1(_Session(options, held), extra))


def _stage1(session: _Session, extra: Stage1Options) -> None:
    options = session.options
    if options.cache_features and extra.train_vision:
        raise UsageError("--cache-features needs a frozen image encoder: it can't be used with --train-vision")
    tok = _tokenizer(options.model, session.ranks.device)
    batches, validation, recipe = session.batches(tok.config)
    model, captions = _contrast(session, extra, tok)
    for path in extra.init:
        _load_init(model, path, session)
    shape = (tok.config.num_tokens, tok.config.vit_dim)
    cache = session.cache("vit", tok, tok.vit_features, shape, "vit")
    if cache:
        session.say(cache.check_space(len(batches.source)))
    task = Stage1(
        model, captions, label_smoothing=extra.label_smoothing, dropout=options.dropout,
        gather=gather_without_gradient if extra.official_gather else gather_with_gradient,
        train_vision=extra.train_vision, features=cache,
    )  # fmt: skip
    about = {"label_smoothing": extra.label_smoothing, "official_gather": extra.official_gather}
    about["max_tokens"] = captions.max_tokens
    if session.train(task, batches, validation, recipe, stage=1, train_vision=extra.train_vision, **about):
        _export(session, tok, (model, captions))


def train_stage2(options: TrainOptions, extra: Stage2Options) -> int:
    """Run `seed-fast train stage2`. Returns the exit code."""
    return _guarded(lambda held: _stage2(_Session(options, held), extra))


def _stage2(session: _Session, extra: Stage2Options) -> None:
    options, ranks = session.options, session.ranks
    if extra.codebook_init not in ("official", "data"):
        raise UsageError(f"--codebook-init must be official or data, got {extra.codebook_init!r}")
    if options.cache_features and extra.official_dropout:
        raise UsageError("--cache-features needs a Q-Former without dropout: it can't be used with --official-dropout")
    tok = _tokenizer(options.model, ranks.device)
    batches, validation, recipe = session.batches(tok.config)
    folder = _folder(options.model)
    contrast = load_contrast(folder, tok) if has_contrast(folder) else None
    target = open_target(extra.target, tok.config, ranks.device, contrast)
    shape = (tok.config.num_codes, tok.config.qformer_dim)
    cache = session.cache("causal", tok, tok.causal_embeddings, shape, *FROZEN)
    if cache:
        session.say(cache.check_space(len(batches.source)))
    task = Stage2(tok, target, dropout=options.dropout, official_dropout=extra.official_dropout, causal=cache)
    if extra.codebook_init == "data" and session.fresh:
        codebook_from_data(tok, batches, ranks, seed=options.seed, causal=cache)
    about = {"target": extra.target, "codebook_init": extra.codebook_init, "official_dropout": extra.official_dropout}
    if session.train(task, batches, validation, recipe, stage=2, **about):
        tok.trained = True
        _export(session, tok, contrast)


def _export(session: _Session, tok: SeedTokenizer, contrast: tuple[Stage1Model, CaptionTokenizer] | None) -> None:
    """Write the trained folder; sharded parameters are put together first."""
    output, model, own = session.options.output, contrast[0] if contrast else None, set(tok.parameters())
    tensors = {name: whole(value) for name, value in tok.state_dict().items()}
    parts = {name: whole(p) for name, p in model.named_parameters() if p not in own} if model else {}
    if session.ranks.rank == 0:
        if contrast:
            save_contrast(output, parts, contrast[1])
        write_folder(output, tok.config, tensors, trained=tok.trained)
        session.say(f"done: {output}")


def _folder(name: str) -> Path:
    """The folder of --model, downloaded if that is a hub id; of presets and files, a folder that isn't there."""
    return Path(name) if hub_id(name) is None else checkpoint_folder(name)


def _tokenizer(name: str, device: torch.device) -> SeedTokenizer:
    """Initial weights of a preset or of a config.json, or those of a checkpoint."""
    if name in PRESETS and not Path(name).exists():
        return SeedTokenizer(SeedConfig.preset(name), device=device)
    if name.endswith(".json"):
        return SeedTokenizer(SeedConfig.from_file(name), device=device)
    return SeedTokenizer.from_pretrained(name.split(",") if "," in name else name, device=device)


def _contrast(session: _Session, extra: Stage1Options, tok: SeedTokenizer) -> tuple[Stage1Model, CaptionTokenizer]:
    """Stage 1's model and captions: of an earlier stage 1, with BERT's weights, or with a vocabulary of this data."""
    options = session.options
    if has_contrast(folder := _folder(options.model)):
        return load_contrast(folder, tok)
    bert = None if extra.bert is None else language_model_folder(extra.bert)
    if bert is not None:
        captions: CaptionTokenizer = BertCaptions(bert, extra.max_tokens)
        positions = BERT_POSITIONS
    else:
        words = session.ranks.from_first(_vocabulary(session) if session.ranks.rank == 0 else None)
        captions, positions = WordTokenizer(words, extra.max_tokens), extra.max_tokens
    model = Stage1Model(tok, captions.size, projection_dim=extra.projection_dim, max_tokens=positions)
    if bert is not None:
        load_bert(model, bert)
    return model, captions


def _vocabulary(session: _Session) -> tuple[str, ...]:
    """The words of the first captions of a shuffled epoch, kept in the output so that a resumed run has the same."""
    output = session.options.output
    if not session.fresh and (output / VOCABULARY).is_file():
        return WordTokenizer.load(output).words
    size = 250
    pairs = open_pairs(
        session.options.data, image_size=16, batch_size=size, drop_last=False, all_captions=True, normalize=False,
        workers=session.options.workers, seed=session.options.seed,
    )  # fmt: skip
    batches = itertools.islice(iter(pairs), CAPTIONS_FOR_VOCABULARY // size)
    tokenizer = WordTokenizer.of_captions(
        caption for batch in batches for each in batch["captions"] for caption in each
    )
    pairs.close()
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.save(output)
    return tokenizer.words


def _load_init(model: Stage1Model, path: Path, session: _Session) -> None:
    """Take over what an official file has: blip2_pretrained.pth, a stage-1 checkpoint, or eva_vit_g.pth."""
    file = TensorFile(path)
    prefix = VIT_PREFIX if "patch_embed.proj.weight" in file.entries else ""
    tensors = {prefix + name: tensor for name, tensor in file.read(file.entries)}
    left = load_official_stage1(model, tensors, source=str(path))
    session.say(f"{path}: taken over; {len(left)} tensors of stage 1 are not in it and keep their weights")


@contextmanager
def _usage() -> Iterator[None]:
    """Values that can't be meant are a wrong command, not a failed run."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from None


def hold_output(output: Path, ranks: Ranks, held: ExitStack) -> None:
    """Keep other runs away from a folder until `held` is left, and remove what killed ones have staged in it.

    Raises:
        OutputError: another process writes there.
    """
    refusal = None
    if ranks.rank == 0:
        is_new = not output.exists()
        try:
            held.enter_context(locked_folder(output))
            for folder in (output, output / UNTIED):
                remove_leftovers(folder)
        except OutputError as error:
            refusal = str(error)
        if is_new:
            held.callback(_remove_if_empty, output)
    refusal = ranks.from_first(refusal)
    if refusal is not None:
        raise OutputError(refusal)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _guarded(work: Callable[[ExitStack], None]) -> int:
    """The work of one rank, as a command. Returns its exit code."""

    def among_ranks() -> int:
        finished = False
        try:
            with ExitStack() as held:
                work(held)
            finished = True
        finally:
            leave(together=finished)
        return 0

    return run(among_ranks, memory="raise --accumulate, or lower --batch-size", usage=(FileExistsError,))
