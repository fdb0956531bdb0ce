"""Builds the language model that a run starts with, on every rank: read by each, or by the first and handed out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from seed_fast.distributed import Ranks
from seed_fast.lm.model import LanguageModel, Lora, build, build_empty
from seed_fast.lm.pretrained import UNTIED
from seed_fast.train import sharded
from seed_fast.train.lm import LanguageModelTask


def start_task(
    model: str | Path,
    ranks: Ranks,
    *,
    output: Path,
    codebook_size: int,
    lora: Lora | None,
    full: bool,
    base: Path | None,
    codebook: Tensor | None,
    dtype: torch.dtype,
    checkpoint_activations: bool,
    fsdp: bool,
) -> tuple[LanguageModelTask, LanguageModel, Callable[[nn.Module], None] | None]:
    """Build the task of a run and its language model. Every rank must call.

    Args:
        model: folder or hub id of a model, or of an adapter.
        ranks: this process among all.
        output: the run's folder, in which a base with an output matrix of its own is written if `codebook` is given.
        codebook_size: number of codes.
        lora: the adapter; None with `full`.
        full: train every weight.
        base: base of the adapter that `model` is, where that is no longer where the adapter says.
        codebook: [K, d]; the embedding of a code is then one linear layer of its entry.
        dtype: of frozen weights.
        checkpoint_activations: see `LanguageModelTask`.
        fsdp: parameters will be sharded over the ranks.

    Returns:
        The task, the language model in it, and for a task that has no storage yet what `Loop` calls to fill it.
    """
    in_parts = full and fsdp and ranks.world > 1
    if not in_parts:
        untied = output / UNTIED if codebook is not None else None
        language = _build_in_turn(
            ranks,
            lambda: build(
                model, codebook_size=codebook_size, lora=lora, full=full, dtype=dtype, device=ranks.device,
                untied=untied, base=base,
            ),
        )  # fmt: skip
        task = LanguageModelTask(language, checkpoint_activations=checkpoint_activations, codebook=codebook)
        return task.to(ranks.device), language, None

    # No rank can hold the whole model on its device: only the first reads it, on the CPU.
    language = build_empty(model, codebook_size=codebook_size)
    task = LanguageModelTask(language, checkpoint_activations=checkpoint_activations)
    wholes = [build(model, codebook_size=codebook_size, full=True).model if ranks.rank == 0 else None]
    if wholes[0] is not None:
        language.model.config, language.model.generation_config = wholes[0].config, wholes[0].generation_config

    def fill(task: nn.Module) -> None:
        sharded.fill(task, language.model, wholes.pop(), ranks.device)  # `pop` lets go of the whole model

    return task, language, fill


def _build_in_turn(ranks: Ranks, make: Callable[[], LanguageModel]) -> LanguageModel:
    """Call `make` on the first rank, then on the others: the first may write files that the others read."""
    language = make() if ranks.rank == 0 else None
    ranks.from_first(None)
    if language is None:
        language = make()
    ranks.from_first(None)
    return language
