"""Targets of stage 2's generation head, which a frozen model computes of each batch.

clip-image:FOLDER   image embeddings [B, G] of a CLIP (SEED-2: CLIP-ViT-H-14-laion2B), of the same pixels
clip-text:FOLDER    text features [B, 77, G] of a CLIP (SEED-1: Stable Diffusion 1.4's), of the captions
stage1-text         output [B, C] of stage 1's own text tower at [CLS], which needs no other model; for seed-tiny
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seed_fast._hub import hub_id, language_model_folder
from seed_fast.model.captions import CaptionTokenizer
from seed_fast.model.config import SeedConfig
from seed_fast.model.stage1 import Stage1Model
from seed_fast.train.batches import Batch

Target = Callable[[Batch], Tensor]
KINDS = ("clip-image:FOLDER", "clip-text:FOLDER", "stage1-text")


def open_target(
    spec: str, config: SeedConfig, device: torch.device, contrast: tuple[Stage1Model, CaptionTokenizer] | None = None
) -> Target:
    """Open the target that `spec` names: a callable that maps a batch to targets.

    Args:
        spec: one of the forms above; FOLDER is a folder of transformers or a hub id.
        config: config of the tokenizer whose head the targets must fit.
        device: device of the frozen model.
        contrast: stage 1's model and caption tokenizer, for "stage1-text".

    Raises:
        ImportError: transformers isn't installed.
        ValueError: `spec` has another form, or its targets have another shape than the head's output.
    """
    kind, _, folder = spec.partition(":")
    if kind == "stage1-text" and not folder:
        if contrast is None:
            raise ValueError("target stage1-text needs a folder of stage 1, with its text tower (contrast.safetensors)")
        _check(spec, (1, contrast[0].tokenizer.config.qformer_dim), config)
        return _Stage1Text(*contrast)
    if kind not in ("clip-image", "clip-text") or not folder:
        raise ValueError(f"target must be one of {', '.join(KINDS)}, got {spec!r}")
    if not Path(folder).is_dir() and hub_id(folder) is None:
        raise ValueError(f"target {spec}: no such folder")
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"target {spec} needs transformers: pip install 'seed_fast[train]'") from error
    folder = str(language_model_folder(folder))
    if kind == "clip-image":
        model = transformers.CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True)
        _check(spec, (1, model.config.projection_dim), config)
        if model.config.image_size != config.image_size:
            size = model.config.image_size
            raise ValueError(f"target {spec}: its images are {size} px, this tokenizer's {config.image_size} px")
        return _ClipImage(model.eval().to(device))
    text = transformers.CLIPTextModel.from_pretrained(folder, local_files_only=True)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    _check(spec, (text.config.max_position_embeddings, text.config.hidden_size), config)
    return _ClipText(text.eval().to(device), tokenizer)


def _check(spec: str, given: tuple[int, int], config: SeedConfig) -> None:
    """Refuse a target of another shape (tokens, width) than the head's output."""
    wanted = (config.generation_tokens, config.generation_dim)
    if given != wanted:
        gives, makes = (f"{tokens} x {width}" for tokens, width in (given, wanted))
        raise ValueError(f"target {spec}: must give what the head makes, {makes} numbers, got {gives}")


class _ClipImage:
    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, batch: Batch) -> Tensor:
        return self._model(pixel_values=batch["pixels"]).image_embeds


class _ClipText:
    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer

    def __call__(self, batch: Batch) -> Tensor:
        length = self._model.config.max_position_embeddings
        rows = self._tokenizer(
            batch["captions"], padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )  # fmt: skip
        # As Stable Diffusion does, without a mask: padding takes part in attention.
        return self._model(input_ids=rows["input_ids"].to(self._model.device)).last_hidden_state


class _Stage1Text:
    def __init__(self, model: Stage1Model, captions: CaptionTokenizer) -> None:
        self._model, self._captions = model, captions

    def __call__(self, batch: Batch) -> Tensor:
        device = self._model.tokenizer.device
        ids, mask = (rows.to(device) for rows in self._captions(batch["captions"]))
        return self._model.text_features(ids, mask)
