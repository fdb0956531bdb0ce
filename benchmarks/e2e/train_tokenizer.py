"""The benchmarks train_stage1 and train_stage2: one training step, by the package's loop and by the official code.

Both also run with the features of the frozen parts at hand, as `--cache-features` keeps them, so that the share of the
cache and that of the rest can be told apart. All is float32. The learning rate is 0, so that all providers share the
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
DROPOUT = 0.1  # the recipe's, in the parts that stage 1 trains
CAPTION_WORDS, SPREAD, LEAST = 10.3, 4.5, 3  # mean and standard deviation of CC3M's captions, and the fewest used here
VOCABULARY = 30_523  # tokens of bert-base-uncased, and [DEC]
# Error allowed of the loss and of gradients, against float64: a multiple of that of the official formulas in float32,
# and a number of float32's roundoffs.
BUDGET = 3.0
ROUNDOFFS = 16
CHECKED = {
    "train_stage1": ("text_proj.weight", "tokenizer.vision_norm.weight", "tokenizer.qformer.query_tokens"),
    "train_stage2": ("quantizer.codebook", "quantizer.encode_task.0.weight", "head.proj.weight"),
}


@dataclass
class Outcome:
    """Loss of a step, and gradients by name of the parameters in `CHECKED`."""

    loss: float
    gradients: dict[str, Tensor]


class Training:
    """The model of a case, which all providers share, and its batch.

    Args:
        stage: "train_stage1" or "train_stage2".
        preset: name of the preset whose sizes the model has.
        inputs: "pixels" [B, 3, S, S], and for stage 2 "target" [B, G].

    Attributes:
        module: the module that is trained: a `Stage1Model`, or a `SeedTokenizer`. Frozen parameters need no gradient.
        frozen: the output of the frozen parts for the batch: ViT features [B, L, E], or causal embeddings [B, N, C].
    """

    def __init__(self, stage: str, preset: str, inputs: Inputs) -> None:
        config = SeedConfig.preset(preset)
        torch.manual_seed(0)
        tok = SeedTokenizer(config, device=inputs["pixels"].device)
        self.stage, self.pixels, self.target = stage, inputs["pixels"], inputs.get("target")
        self.captions, texts = _captions(len(self.pixels))
        self.batch: dict[str, Any] = {
            **inputs,
            "captions": texts,
            "keys": [str(number) for number in range(len(texts))],
        }
        self.module: Any = tok
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
        """Compute `frozen` by the official formulas."""
        if self.stage == "train_stage1":
            return official.vit_features(self.module.tokenizer.vit, self.pixels)
        return official.causal_embeddings(self.module, self.pixels)

    def official_loss(self, module: Any, frozen: Tensor, dropout: float) -> Tensor:
        """The official loss, a scalar, from the output of the frozen parts."""
        if self.target is not None:  # stage 2
            return official.stage2_loss(module, frozen, self.target.to(frozen.dtype))
        ids, mask = self.captions(self.batch["captions"])
        ids, mask = (nn.functional.pad(rows, (0, MAX_TOKENS - rows.shape[1]), value=PAD) for rows in (ids, mask))
        return official.stage1_loss(module, frozen, ids.to(frozen.device), mask.to(frozen.device), dropout=dropout)

    def outcome(self, dtype: torch.dtype) -> Outcome:
        """Loss and gradients by the official formulas in `dtype`, from the frozen parts' output in float32."""
        tok = self.module.tokenizer if self.stage == "train_stage1" else self.module
        module = copy.deepcopy(self.module, memo={id(tok.vit): nn.Identity()}).to(dtype)
        loss = self.official_loss(module, self.frozen.to(dtype), 0.0)
        loss.backward()
        return Outcome(loss.item(), {name: module.get_parameter(name).grad for name in CHECKED[self.stage]})


def _captions(count: int) -> tuple[WordTokenizer, list[str]]:
    """(a tokenizer with a vocabulary of BERT's size, captions as long as those of CC3M, Sharma et al. 2018)."""
    tokenizer = WordTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(VOCABULARY - 4))])
    generator = torch.Generator().manual_seed(count)
    lengths = (
        (CAPTION_WORDS + SPREAD * torch.randn(count, generator=generator)).round().int().clamp(LEAST, MAX_TOKENS - 2)
    )
    return tokenizer, [
        " ".join(f"w{i}" for i in torch.randint(VOCABULARY - 4, (length,), generator=generator).tolist())
        for length in lengths.tolist()
    ]


_last: list[tuple[Any, Training]] = []  # the last one alone: at full size they are gigabytes


def training(case: Case, inputs: Inputs) -> Training:
    """The model and batch of a case on these inputs, the same ones for all providers."""
    key = (case.options["stage"], case.name, inputs["pixels"].data_ptr())
    if not _last or _last[0][0] != key:
        _last.clear()
        _last.append((key, Training(case.options["stage"], case.options["preset"], inputs)))
    return _last[0][1]


class _Step:
    """A step to time. The first one, which is checked, has no dropout and returns its outcome.

    Args:
        training: the model and batch.
        optimizer: of the model's parameters.
        step: takes a step with the given dropout, and returns its loss.
        close: releases what the step holds.
    """

    def __init__(
        self,
        training: Training,
        optimizer: torch.optim.Optimizer,
        step: Callable[[float], Tensor],
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._training, self._optimizer, self._step, self.close = training, optimizer, step, close
        self._is_first = True

    def __call__(self) -> Outcome | None:
        if not self._is_first:
            self._step(DROPOUT)
            return None
        self._is_first = False
        loss = self._step(0.0)
        # After one step the first moment is 1 - beta times the gradient, which the step itself no longer has.
        share = 1 - self._optimizer.param_groups[0]["betas"][0]
        parameters = dict(self._training.module.named_parameters())
        moments = {name: self._optimizer.state[parameters[name]]["exp_avg"] for name in CHECKED[self._training.stage]}
        return Outcome(loss.item(), {name: moment / share for name, moment in moments.items()})


def _official(*, cached: bool) -> Callable[[Inputs, Case], Call]:
    def prepare(inputs: Inputs, case: Case) -> Call:
        shared = training(case, inputs)
        optimizer = torch.optim.AdamW(parameter_groups(shared.module, 0.05), lr=0.0)

        def step(dropout: float) -> Tensor:
            if cached:
                frozen = shared.frozen
            else:
                with torch.no_grad():
                    frozen = shared.compute_frozen()
            loss = shared.official_loss(shared.module, frozen, dropout)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return _Step(shared, optimizer, step)

    return prepare


def _ours(*, cached: bool) -> Callable[[Inputs, Case], Call]:
    def prepare(inputs: Inputs, case: Case) -> Call:
        shared = training(case, inputs)
        folder = tempfile.TemporaryDirectory(prefix="seed_fast_bench_")
        cache = _cache(Path(folder.name), shared) if cached else None
        parts: tuple[nn.Module, ...] = ()
        if isinstance(shared.module, Stage1Model):
            task: Stage1 | Stage2 = Stage1(shared.module, shared.captions, dropout=DROPOUT, features=cache)
            parts = shared.module.tokenizer.qformer, shared.module.text
        else:
            task = Stage2(shared.module, lambda batch: batch["target"], causal=cache)
        recipe = Recipe(len(shared.pixels), 1, 1, lr=0.0, min_lr=0.0, warmup_lr=0.0, warmup_steps=0)
        ranks = Ranks(0, 1, shared.pixels.device)
        no_data: Any = ()  # the stream below is given to each step
        loop = Loop(task, no_data, recipe, Run(Path(folder.name) / "run"), ranks)
        stream = itertools.repeat(shared.batch)

        def step(dropout: float) -> Tensor:
            for part in parts:
                set_dropout(part, dropout)
            return loop.train_step(stream)["loss"]

        return _Step(shared, loop.optimizer, step, folder.cleanup)

    return prepare


def _cache(folder: Path, shared: Training) -> FeatureCache:
    """A cache of features on disk, as training has it, that holds those of the batch."""
    shape = tuple(shared.frozen.shape[1:])
    cache = FeatureCache(folder, lambda batch: shared.frozen, shape=shape, dtype=shared.frozen.dtype, about={})
    cache(shared.batch)
    return cache


def _inputs(case: Case, device: str, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    config, images = SeedConfig.preset(case.options["preset"]), case.shape["images"]
    inputs = {"pixels": torch.randn(images, 3, config.image_size, config.image_size, generator=generator)}
    if case.options["stage"] == "train_stage2":
        inputs["target"] = torch.randn(images, config.generation_dim, generator=generator)
    return {name: x.to(device) for name, x in inputs.items()}


def _errors(outcome: Outcome, exact: Outcome) -> dict[str, float]:
    """How far the loss and each gradient are from the exact ones, relative to the exact ones."""
    errors = {"the loss": abs(outcome.loss - exact.loss) / abs(exact.loss)}
    for name, true in exact.gradients.items():
        errors[f"the gradient of {name}"] = float((outcome.gradients[name].double() - true).norm() / true.norm())
    return errors


def _truth(inputs: Inputs, case: Case) -> tuple[Outcome, dict[str, float]]:
    """(the outcome in float64, the errors of the official formulas in float32)."""
    shared = training(case, inputs)
    exact = shared.outcome(torch.float64)
    return exact, _errors(shared.outcome(torch.float32), exact)


def check(
    case: Case, provider: Provider, output: Outcome, inputs: Inputs, truth: tuple[Outcome, dict[str, float]]
) -> tuple[str, str]:
    """Check that loss and gradients are within `BUDGET` and `ROUNDOFFS`."""
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
    shapes_alone = Training(stage, preset, _inputs(case, "meta", 0))
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            frozen = shapes_alone.compute_frozen()
        shapes_alone.official_loss(shapes_alone.module, frozen, 0.0).backward()
    trained = sum(p.numel() for _, p in trainable(shapes_alone.module))
    total = sum(p.numel() for p in shapes_alone.module.parameters())
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
