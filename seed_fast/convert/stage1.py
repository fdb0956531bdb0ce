"""Convert official stage-1 state dicts (LAVIS `blip2_casual`) to `Stage1Model` and back, and load BERT's weights.

The names of the image side are in `seed_fast.convert.names`; those of the text branch and the projections are here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from seed_fast.convert.files import CheckpointError, plain_names, unwrapped
from seed_fast.convert.names import POSITION_IDS, SEED_2, rename
from seed_fast.model.config import SeedConfig
from seed_fast.model.stage1 import Stage1Model
from seed_fast.model.tokenizer import SeedTokenizer

logger = logging.getLogger(__name__)

_LAYER = "Qformer.bert.encoder.layer.{i}"
_TEXT = (
    ("text.word_embedding", "Qformer.bert.embeddings.word_embeddings.weight"),
    ("text.position_embedding", "Qformer.bert.embeddings.position_embeddings.weight"),
    ("text.ffns.{i}.up.*", f"{_LAYER}.intermediate.dense.*"),
    ("text.ffns.{i}.down.*", f"{_LAYER}.output.dense.*"),
    ("text.ffns.{i}.norm.*", f"{_LAYER}.output.LayerNorm.*"),
    ("vision_proj.*", "vision_proj.*"),
    ("text_proj.*", "text_proj.*"),
    ("temperature", "temp"),
)
STAGE_1 = (*((f"tokenizer.{ours}", official) for ours, official in SEED_2), *_TEXT)
IMAGE_PARTS = ("vit.", "vision_norm.", "qformer.")  # the parts of the tokenizer that stage 1 has
_SIZES = {
    "vocabulary": "Qformer.bert.embeddings.word_embeddings.weight",
    "positions": "Qformer.bert.embeddings.position_embeddings.weight",
    "projection": "vision_proj.weight",
}


def stage1_names(model: Stage1Model) -> dict[str, str]:
    """Return {our name: official name} for every tensor of stage 1."""
    names = (name for name in model.state_dict() if is_stage1(name))
    return {name: rename(name, STAGE_1) for name in names}


def is_stage1(name: str) -> bool:
    """Return True if stage 1 uses this tensor of a `Stage1Model`; the rest of the tokenizer is for stage 2."""
    return not name.startswith("tokenizer.") or name.removeprefix("tokenizer.").startswith(IMAGE_PARTS)


def from_official_stage1(
    state_dict: Mapping[str, Tensor], config: SeedConfig, *, dtype: torch.dtype = torch.float32
) -> Stage1Model:
    """Build a stage-1 model from a state dict with official names.

    The quantizer and the decoders, which stage 1 doesn't have, get initial weights. Surplus names (`Qformer.cls`, the
    matching and captioning heads of BLIP-2) are left out, and logged once.

    Args:
        state_dict: {official name: tensor}. It also gives the sizes of the vocabulary and of the projection.
        config: the other sizes, which a state dict doesn't fully show (numbers of heads).
        dtype: type of the weights.

    Raises:
        CheckpointError (a ValueError): tensors are missing, or have another shape than `config` says.
    """
    state_dict = plain_names(unwrapped(state_dict))
    missing = [name for name in _SIZES.values() if name not in state_dict]
    if missing:
        raise CheckpointError(f"state dict: must be a stage-1 checkpoint, but it lacks {', '.join(missing)}")
    vocabulary, positions, projection = (len(state_dict[name]) for name in _SIZES.values())
    tok = SeedTokenizer(config, dtype=dtype)
    model = Stage1Model(tok, vocabulary, projection_dim=projection, max_tokens=positions)
    names = stage1_names(model)
    left = load_official_stage1(model, state_dict)
    if left:
        some = ", ".join(names[name] for name in left[:5]) + (", ..." if len(left) > 5 else "")
        raise CheckpointError(
            f"state dict: must hold {len(names)} tensors for stage 1, but {len(left)} are missing: {some}"
        )
    return model.eval()


@torch.no_grad()
def load_official_stage1(
    model: Stage1Model, state_dict: Mapping[str, Tensor], *, source: str = "state dict"
) -> list[str]:
    """Copy the tensors of `state_dict` into a stage-1 model; it may lack some.

    `blip2_pretrained.pth`, from which the official stage 1 starts, and `eva_vit_g.pth` are such incomplete files.

    Returns:
        Our names of the tensors that `state_dict` doesn't have.

    Raises:
        CheckpointError: a tensor has another shape than the model's, or no name belongs to the model.
    """
    own = _official_state(model)
    names = stage1_names(model)
    found = {ours: name for ours, name in names.items() if name in state_dict}
    if not found:
        raise CheckpointError(f"{source}: must hold tensors with official names such as query_tokens, got none of them")
    for ours, name in found.items():
        if state_dict[name].shape != own[ours].shape:
            wanted, got = list(own[ours].shape), list(state_dict[name].shape)
            raise CheckpointError(f"{source}: {name} must be {wanted} for this config, got {got}")
        own[ours].copy_(state_dict[name])
    surplus = sorted(set(state_dict) - set(names.values()))
    if surplus:
        logger.warning("%s: left out %d tensors that stage 1 doesn't have", source, len(surplus))
    return [ours for ours in names if ours not in found]


def to_official_stage1(model: Stage1Model) -> dict[str, Tensor]:
    """Return the state dict with official names, tensors shared with `model`; the inverse of `from_official_stage1`."""
    own = _official_state(model)
    official = {name: own[ours] for ours, name in stage1_names(model).items()}
    official["Qformer.bert.embeddings.position_ids"] = torch.arange(POSITION_IDS.numel()).view(POSITION_IDS)
    return official


def _official_state(model: Stage1Model) -> dict[str, Tensor]:
    """Return {our name: tensor}, with the official shapes; the tensors share the model's memory."""
    own = model.state_dict()
    return own | {"temperature": own["temperature"].reshape(())}


@torch.no_grad()
def load_bert(model: Stage1Model, folder: str | Path) -> None:
    """Initialise the Q-Former and the text tower from a local BERT folder, such as bert-base-uncased.

    This follows BLIP-2: self-attention, norms and text feed-forwards are BERT's, and query feed-forwards are a copy of
    the latter. Cross-attention, which BERT lacks, keeps its initial weights, and so do word embeddings beyond BERT's
    vocabulary ([DEC]). BERT's token types, which BLIP-2 lacks, are left out.

    Raises:
        ImportError: transformers isn't installed.
        ValueError: the folder's BERT has other sizes.
    """
    try:
        from transformers import BertModel
    except ImportError as error:
        raise ImportError("load_bert needs transformers: pip install 'seed_fast[train]'") from error
    bert = BertModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False).state_dict()
    own = model.state_dict()
    for ours, official in stage1_names(model).items():
        name = official.removeprefix("Qformer.bert.").replace("_query.", ".")
        if not official.startswith("Qformer.bert.") or name not in bert:
            continue  # the image encoder, the projections, cross-attention
        target, source = own[ours], bert[name]
        if ours == "text.word_embedding" and len(source) <= len(target) and source.shape[1] == target.shape[1]:
            target = target[: len(source)]
        if source.shape != target.shape:
            raise ValueError(f"{folder}: {name} must be {list(target.shape)} for this config, got {list(source.shape)}")
        target.copy_(source)
