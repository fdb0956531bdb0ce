"""Steps that both stages of training a tokenizer share: open data, cache features, run the loop, save."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seed_fast._files import OutputError, locked_folder, remove_leftovers
from seed_fast.convert.contrast import save_contrast
from seed_fast.convert.save import write_folder
from seed_fast.data.pairs import Pairs, open_pairs
from seed_fast.distributed import Ranks, whole
from seed_fast.lm.pretrained import UNTIED
from seed_fast.model.captions import CaptionTokenizer
from seed_fast.model.config import SeedConfig
from seed_fast.model.dtypes import DTYPE_BY_NAME
from seed_fast.model.stage1 import Stage1Model
from seed_fast.model.tokenizer import SeedTokenizer
from seed_fast.model.weight_hashes import checksum
from seed_fast.train import checkpoint
from seed_fast.train.features import FeatureCache
from seed_fast.train.loop import Loop
from seed_fast.train.recipe import Recipe, Run


@dataclass(frozen=True)
class PairData:
    """Image-text pairs to train and to validate on.

    Args:
        data: what `open_pairs` takes.
        validation: the same, to validate on; None: no validation.
        validation_split: its split, where it has splits.
        workers: processes per rank that read and decode.
        augment: random crops and flips; None: yes, unless features are cached.
        cache_features: folder that keeps the features of frozen parts; None: they are computed anew in every epoch.
    """

    data: str
    validation: str | None = None
    validation_split: str = "val"
    workers: int = 2
    augment: bool | None = None
    cache_features: Path | None = None


class TokenizerSession:
    """One rank's part of training a tokenizer, whichever stage.

    Args:
        recipe: what the result depends on.
        run: where to save, and how often.
        pairs: the data.
        ranks: this process among all.
        epoch_steps: steps that count as an epoch; None: as many as the data has, in place of the recipe's.
        note: is told in a line what a user wants to know.

    Attributes:
        fresh: True if no checkpoint is there to resume from.
        step: optimizer steps done, once `train` has returned.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        pairs: PairData,
        ranks: Ranks,
        *,
        epoch_steps: int | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.recipe, self.run, self.pairs, self.ranks, self.note = recipe, run, pairs, ranks, note
        self._epoch_steps = epoch_steps
        self._batches: Pairs | None = None
        self._validation: Pairs | None = None
        self.step = 0
        self.fresh = ranks.from_first(checkpoint.latest(run.checkpoints) is None)
        torch.manual_seed(recipe.seed)

    def open_data(self, config: SeedConfig) -> Pairs:
        """Open the training batches of this rank, and the validation batches if there are any.

        Args:
            config: of the tokenizer, whose image size and way of resizing the images get.

        Raises:
            OSError: the data isn't there.
            ValueError: it is too small for one batch.
        """
        pairs, ranks, recipe = self.pairs, self.ranks, self.recipe
        common: dict[str, Any] = {
            "image_size": config.image_size, "resize": config.resize, "batch_size": recipe.micro_batch(ranks.world),
            "rank": ranks.rank, "world": ranks.world, "workers": pairs.workers, "seed": recipe.seed,
        }  # fmt: skip
        augment = not pairs.cache_features if pairs.augment is None else pairs.augment
        batches = open_pairs(pairs.data, augment=augment, **common)
        if pairs.validation:
            self._validation = open_pairs(pairs.validation, split=pairs.validation_split, **common)
        if self._epoch_steps is None:
            self.recipe = replace(recipe, epoch_steps=len(batches) // recipe.accumulate)
        self._batches = batches
        return batches

    def cache(
        self,
        name: str,
        tok: SeedTokenizer,
        compute: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
        parts: tuple[str, ...],
    ) -> FeatureCache | None:
        """Open the cache of features that frozen parts compute, if one is asked for; call after `open_data`.

        Args:
            name: of the features, which the cache remembers.
            tok: the tokenizer.
            compute: pixels [B, 3, S, S] -> features [B, *shape].
            shape: of one image's features.
            parts: submodules of `tok` on which the features depend.

        Raises:
            ValueError: the folder holds other features, or the disk has too little room.
        """
        folder = self.pairs.cache_features
        if folder is None or self._batches is None:
            return None
        about: dict[str, Any] = {"weights": checksum(*(tok.get_submodule(part) for part in parts)), "features": name}
        about |= {"image_size": tok.config.image_size, "resize": tok.config.resize}
        cache = FeatureCache(
            folder, lambda batch: compute(batch["pixels"]), shape=shape, dtype=DTYPE_BY_NAME[self.recipe.dtype],
            about=about, rank=self.ranks.rank,
        )  # fmt: skip
        self.note(cache.check_space(len(self._batches.source)))
        return cache

    def train(self, task: nn.Module, **about: Any) -> bool:
        """Run the loop on the data of `open_data`, to its end or until SIGTERM or SIGINT.

        Args:
            task: what to train.
            about: further options that the result depends on; kept in checkpoints, and compared on resume.

        Returns:
            True if the end was reached; the task then has its final weights, the moving average if there is one.
        """
        batches, recipe = self._batches, self.recipe
        if batches is None:
            raise ValueError("TokenizerSession.train: open_data must be called first")
        about |= {"data": self.pairs.data}
        loop = Loop(task, batches, recipe, self.run, self.ranks, validation=self._validation, about=about)
        self.note(
            f"{recipe.schedule.steps} steps of {recipe.batch_size} pairs, in {recipe.dtype}, from step {loop.step}"
        )
        done = loop()
        self.step = loop.step
        if loop.average and done:
            loop.average.swap(task)
        batches.close()
        if skipped := sum(self.ranks.of_all(batches.skipped)):
            self.note(f"{skipped} times a sample could not be used, and another one took its place")
        return done

    def save(self, tok: SeedTokenizer, contrast: tuple[Stage1Model, CaptionTokenizer] | None) -> None:
        """Write the trained folder; sharded parameters are gathered first, so every rank must call.

        Args:
            tok: the tokenizer.
            contrast: stage 1's model around it and the caption tokenizer, to be written beside it.
        """
        output, model, own = self.run.output, contrast[0] if contrast else None, set(tok.parameters())
        tensors = {name: whole(value) for name, value in tok.state_dict().items()}
        parts = {name: whole(p) for name, p in model.named_parameters() if p not in own} if model else {}
        if self.ranks.rank == 0:
            if contrast:
                save_contrast(output, parts, contrast[1])
            write_folder(output, tok.config, tensors, trained=tok.trained)
        self.note(f"done: {output}")


@contextmanager
def held_output(output: Path, ranks: Ranks) -> Iterator[None]:
    """Keep other runs away from a folder during the block, and remove what killed ones have left half-written in it.

    A folder that was not there and is still empty at the end is removed. Every rank must call.

    Raises:
        OutputError: another process writes there.
    """
    with ExitStack() as held:
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
        yield


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
