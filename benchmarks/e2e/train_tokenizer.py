"""One training step of each stage, pixels and captions to new weights: the package's loop against the official step.

Both also run with the features of the frozen parts at hand, as `--cache-features` keeps them, so that the share of the
cache and that of the rest can be told apart. In float32. The learning rate is 0, so that all providers share the
weights and every step starts from the same ones. Dropout is the recipe's, except in the first step, which is checked.
"""

from __future__ import annotations

import copy
import functools
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.e2e import official_training as official
from benchmarks.providers import Bar, Benchmark, Call, Case, Inputs, Provider
from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.distributed import Ranks, trainable
from seed_fast.model.captions import MAX_TOKENS, PAD, WordTokenizer
from seed_fast.model.qformer import set_dropout
from seed_fast.model.stage1 import Stage1Model
from seed_fast.train.features import FeatureCache
from seed_fast.train.loop import Loop
from seed_fast.train.optimizer import parameter_groups
from seed_fast.train.recipe import Recipe, Run
from seed_fast.train.stage1 import Stage1
from seed_fast.train.stage2 import FROZEN, Stage2

OFFICIAL, OFFICIAL_CACHED = "official", "official, features at hand"
OURS, OURS_CACHED = "seed_fast", "seed_fast, cached features"
DROPOUT = 0.1  # the recipe's, of what stage 1 trains
WORDS, SPREAD, LEAST = 10.3, 4.5, 3  # of a caption of CC3M: mean, standard deviation; and the fewest here
VOCABULARY = 30_523  # bert-base-uncased and [DEC]
BUDGET = 3.0  # error of the loss and of gradients against float64, as a multiple of that of the official formulas
ROUNDOFFS = 16  # and so many of float32's more
CHECKED = {
    "train_stage1": ("text_proj.weight", "tokenizer.vision_norm.weight", "tokenizer.qformer.query_tokens"),
    "train_stage2": ("quantizer.codebook", "quantizer.encode_task.0.weight", "head.proj.weight"),
}


@dataclass
class Outcome:
    """What a step computed: its loss, and the gradients of the parameters in `CHECKED`."""

    loss: float
    gradients: dict[str, Tensor]


class Training:
    """The model of a case, which all providers share, and its batch.

    Attributes:
        module: what is trained, a `Stage1Model` or a `SeedTokenizer`; parameters that are frozen say so.
        frozen: what the frozen parts make of the batch: ViT features [B, L, E], or causal embeddings [B, N, C].
    """

    def __init__(self, stage: str, preset: str, inputs: Inputs) -> None:
        config = SeedConfig.preset(preset)
        torch.manual_seed(0)
        tok = SeedTokenizer(config, device=inputs["pixels"].device)
        self.stage, self.pixels, self.target = stage, inputs["pixels"], inputs.get("target")
        self.captions, texts = _captions(len(self.pixels))
        self.batch = {**inputs, "captions": texts, "keys": [str(number) for number in range(len(texts))]}
        self.module: nn.Module = tok
        if stage == "train_stage1":
            self.module = Stage1Model(tok, VOCABULARY)
        else:
            for name in FROZEN:
                tok.get_submodule(name).requires_grad_(False)
        with torch.no_grad():
            self.frozen = self.compute_frozen()
            if stage == "train_stage2":  # as far apart as the vectors are long: rounding can't choose another entry
                z, codebook = tok.quantizer.encode_task(self.frozen), tok.quantizer.codebook
                codebook.copy_(z.mean((0, 1)) + z.std() * torch.randn_like(codebook))

    def compute_frozen(self) -> Tensor:
        """The official computation of the frozen parts."""
        if self.stage == "train_stage1":
            return official.vit_features(self.module.tokenizer.vit, self.pixels)
        return official.causal_embeddings(self.module, self.pixels)

    def official_loss(self, module: nn.Module, frozen: Tensor, dropout: float) -> Tensor:
        """The official loss from what the frozen parts made."""
        if self.stage == "train_stage2":
            return official.stage2_loss(module, frozen, self.target.to(frozen.dtype))
        ids, mask = self.captions(self.batch["captions"])
        ids, mask = (nn.functional.pad(rows, (0, MAX_TOKENS - rows.shape[1]), value=PAD) for rows in (ids, mask))
        return official.stage1_loss(module, frozen, ids.to(frozen.device), mask.to(frozen.device), dropout=dropout)

    def outcome(self, dtype: torch.dtype) -> Outcome:
        """By the official formulas in `dtype`, from the frozen parts' float32."""
        tok = self.module.tokenizer if self.stage == "train_stage1" else self.module
        module = copy.deepcopy(self.module, memo={id(tok.vit): nn.Identity()}).to(dtype)
        loss = self.official_loss(module, self.frozen.to(dtype), 0.0)
        loss.backward()
        parameters = dict(module.named_parameters())
        return Outcome(loss.item(), {name: parameters[name].grad for name in CHECKED[self.stage]})


def _captions(count: int) -> tuple[WordTokenizer, list[str]]:
    """A vocabulary of BERT's size, and captions with as many words as those of CC3M have (Sharma et al. 2018)."""
    tokenizer = WordTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(VOCABULARY - 4))])
    generator = torch.Generator().manual_seed(count)
    lengths = (WORDS + SPREAD * torch.randn(count, generator=generator)).round().int().clamp(LEAST, MAX_TOKENS - 2)
    return tokenizer, [
        " ".join(f"w{i}" for i in torch.randint(VOCABULARY - 4, (length,), generator=generator).tolist())
        for length in lengths.tolist()
    ]


_made: list[tuple[Any, Training]] = []  # the last one alone: of the full size they are gigabytes


def training(case: Case, inputs: Inputs) -> Training:
    """The training of a case on these inputs."""
    key = (case.options["stage"], case.name, inputs["pixels"].data_ptr())
    if not _made or _made[0][0] != key:
        _made.clear()
        _made.append((key, Training(case.options["stage"], case.options["preset"], inputs)))
    return _made[0][1]


class _Step:
    """A step to time; the first one, which is checked, goes without dropout."""

    def __init__(self, made: Training, optimizer: torch.optim.Optimizer, step: Callable[[float], Tensor]) -> None:
        self._made, self._optimizer, self._step = made, optimizer, step
        self._is_first = True

    def __call__(self) -> Outcome | None:
        if not self._is_first:
            self._step(DROPOUT)
            return None
        self._is_first = False
        loss = self._step(0.0)
        # After one step the first moment is 1 - beta times the gradient, which the step itself no longer has.
        share = 1 - self._optimizer.param_groups[0]["betas"][0]
        parameters = dict(self._made.module.named_parameters())
        moments = {name: self._optimizer.state[parameters[name]]["exp_avg"] for name in CHECKED[self._made.stage]}
        return Outcome(loss.item(), {name: moment / share for name, moment in moments.items()})


def _official(*, cached: bool) -> Callable[[Inputs, Case], Call]:
    def prepare(inputs: Inputs, case: Case) -> Call:
        made = training(case, inputs)
        optimizer = torch.optim.AdamW(parameter_groups(made.module, 0.05), lr=0.0)

        def step(dropout: float) -> Tensor:
            if cached:
                frozen = made.frozen
            else:
                with torch.no_grad():
                    frozen = made.compute_frozen()
            loss = made.official_loss(made.module, frozen, dropout)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return _Step(made, optimizer, step)

    return prepare


def _ours(*, cached: bool) -> Callable[[Inputs, Case], Call]:
    def prepare(inputs: Inputs, case: Case) -> Call:
        made = training(case, inputs)
        folder = tempfile.TemporaryDirectory(prefix="seed_fast_bench_")
        cache = _cache(Path(folder.name), made) if cached else None
        parts: tuple[nn.Module, ...] = ()
        if isinstance(made.module, Stage1Model):
            task: nn.Module = Stage1(made.module, made.captions, dropout=DROPOUT, features=cache)
            parts = made.module.tokenizer.qformer, made.module.text
        else:
            task = Stage2(made.module, lambda batch: batch["target"], causal=cache)
        recipe = Recipe(len(made.pixels), 1, 1, lr=0.0, min_lr=0.0, warmup_lr=0.0, warmup_steps=0)
        ranks = Ranks(0, 1, made.pixels.device)
        loop = Loop(task, (), recipe, Run(Path(folder.name) / "run"), ranks)
        stream = itertools.repeat(made.batch)

        def step(dropout: float) -> Tensor:
            for part in parts:
                set_dropout(part, dropout)
            return loop.train_step(stream)["loss"]

        made_step = _Step(made, loop.optimizer, step)
        made_step.close = folder.cleanup  # type: ignore[attr-defined]
        return made_step

    return prepare


def _cache(folder: Path, made: Training) -> FeatureCache:
    """On disk, as training has it, and filled."""
    shape = tuple(made.frozen.shape[1:])
    cache = FeatureCache(folder, lambda batch: made.frozen, shape=shape, dtype=made.frozen.dtype, about={})
    cache(made.batch)
    return cache


def _inputs(case: Case, device: str, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    config, images = SeedConfig.preset(case.options["preset"]), case.shape["images"]
    found = {"pixels": torch.randn(images, 3, config.image_size, config.image_size, generator=generator)}
    if case.options["stage"] == "train_stage2":
        found["target"] = torch.randn(images, config.generation_dim, generator=generator)
    return {name: x.to(device) for name, x in found.items()}


def _errors(found: Outcome, exact: Outcome) -> dict[str, float]:
    """How far the loss and each gradient are from the exact ones, relative to these."""
    errors = {"the loss": abs(found.loss - exact.loss) / abs(exact.loss)}
    for name, gradient in exact.gradients.items():
        errors[f"the gradient of {name}"] = float((found.gradients[name].double() - gradient).norm() / gradient.norm())
    return errors


def _truth(inputs: Inputs, case: Case) -> tuple[Outcome, dict[str, float]]:
    """What is right, and the errors that the official formulas have in float32."""
    made = training(case, inputs)
    exact = made.outcome(torch.float64)
    return exact, _errors(made.outcome(torch.float32), exact)


def check(
    case: Case, provider: Provider, output: Outcome, inputs: Inputs, truth: tuple[Outcome, dict[str, float]]
) -> tuple[str, str]:
    """Loss and gradients within `BUDGET`."""
    exact, official_errors = truth
    for name, error in _errors(output, exact).items():
        allowed = BUDGET * official_errors[name] + ROUNDOFFS * torch.finfo(torch.float32).eps
        if not error <= allowed:
            return f"{name} is off by {error:.2g} of its length, more than {allowed:.2g}", ""
    return "", ""


@functools.lru_cache
def _work(stage: str, preset: str, images: int) -> tuple[int, int]:
    """(operations of the official step, counted on shapes alone; bytes of weights and optimizer state that move)."""
    case = Case("", {"images": images}, options={"stage": stage, "preset": preset})
    made = Training(stage, preset, _inputs(case, "meta", 0))
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            frozen = made.compute_frozen()
        made.official_loss(made.module, frozen, 0.0).backward()
    trained = sum(p.numel() for _, p in trainable(made.module))
    total = sum(p.numel() for p in made.module.parameters())
    # Each weight is read. A trained one is also written, its gradient written and read, its moments read and written.
    return counter.get_total_flops(), 4 * (total + 7 * trained)


def _case(stage: str, preset: str, images: int, **settings: Any) -> Case:
    options = {"stage": stage, "preset": preset}
    return Case(f"{preset}, B={images}", {"images": images}, options=options, devices=("cpu",), **settings)


def _benchmark(stage: str) -> Benchmark:
    cases = (_case(stage, "seed-tiny", 64, quick=True), _case(stage, "seed-2", 4, rounds=3))
    bars = (
        bar
        for case in cases
        for bar in (
            Bar("1.5x the official step", case.name, OURS_CACHED, (OFFICIAL,), 1.5),
            Bar("no slower on the same features", case.name, OURS_CACHED, (OFFICIAL_CACHED,), 1.0),
        )
    )
    return Benchmark(
        op=stage,
        cases=cases,
        providers=(
            Provider(OURS_CACHED, _ours(cached=True), ours=True),
            Provider(OURS, _ours(cached=False), ours=True),
            Provider(OFFICIAL, _official(cached=False)),
            Provider(OFFICIAL_CACHED, _official(cached=True)),
        ),
        baseline=OFFICIAL,
        bars=tuple(bars),
        inputs=_inputs,
        truth=_truth,
        check=check,
        flops=lambda case: _work(case.options["stage"], case.options["preset"], case.shape["images"])[0],
        bytes=lambda case: _work(case.options["stage"], case.options["preset"], case.shape["images"])[1],
        memory_cases=(),
    )


STAGE1, STAGE2 = _benchmark("train_stage1"), _benchmark("train_stage2")
