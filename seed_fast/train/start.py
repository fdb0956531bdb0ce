"""Loads what the training of a tokenizer starts from: a preset, a folder of stage 1, official files, a vocabulary."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from seed_fast._hub import hub_id, language_model_folder
from seed_fast.convert.contrast import has_contrast, load_contrast
from seed_fast.convert.files import TensorFile
from seed_fast.convert.names import VIT_PREFIX
from seed_fast.convert.source import checkpoint_folder
from seed_fast.convert.stage1 import load_bert, load_official_stage1
from seed_fast.data.pairs import open_pairs
from seed_fast.model.captions import VOCABULARY, BertCaptions, CaptionTokenizer, WordTokenizer
from seed_fast.model.config import PRESETS, SeedConfig
from seed_fast.model.stage1 import Stage1Model
from seed_fast.model.tokenizer import SeedTokenizer
from seed_fast.train.session import TokenizerSession

CAPTIONS_FOR_VOCABULARY = 20_000
BERT_POSITIONS = 512  # rows of BERT's position embedding


def initial_tokenizer(name: str, device: torch.device) -> SeedTokenizer:
    """Make a tokenizer with initial weights, or load one.

    Args:
        name: a preset or a config.json, for initial weights; or what `SeedTokenizer.from_pretrained` takes, several
            files separated by commas.
        device: where its weights shall be.
    """
    if name in PRESETS and not Path(name).exists():
        return SeedTokenizer(SeedConfig.preset(name), device=device)
    if name.endswith(".json"):
        return SeedTokenizer(SeedConfig.from_file(name), device=device)
    return SeedTokenizer.from_pretrained(name.split(",") if "," in name else name, device=device)


def stage1_folder(name: str) -> Path:
    """Return the folder of a tokenizer, downloaded if it is on the hub; for presets and files it doesn't exist."""
    return Path(name) if hub_id(name) is None else checkpoint_folder(name)


def initial_contrast(
    session: TokenizerSession,
    tok: SeedTokenizer,
    name: str,
    *,
    bert: Path | None,
    projection_dim: int,
    max_tokens: int,
) -> tuple[Stage1Model, CaptionTokenizer]:
    """Make or load what stage 1 trains around a tokenizer, and the tokenizer of captions. Every rank must call.

    Args:
        session: whose data gives the vocabulary if there is no other.
        tok: the tokenizer.
        name: what `tok` was loaded from; if that is a folder of stage 1, its text tower is loaded, and the arguments
            below are not used.
        bert: folder or hub id of a BERT, whose tokenizer and weights the text tower gets; None: a vocabulary of the
            words of the data, and initial weights.
        projection_dim: width of the embeddings that are compared.
        max_tokens: tokens of a caption; longer ones are cut.
    """
    if has_contrast(folder := stage1_folder(name)):
        return load_contrast(folder, tok)
    if bert is not None:
        folder = language_model_folder(bert)
        captions: CaptionTokenizer = BertCaptions(folder, max_tokens)
        model = Stage1Model(tok, captions.size, projection_dim=projection_dim, max_tokens=BERT_POSITIONS)
        load_bert(model, folder)
        return model, captions
    words = session.ranks.from_first(_vocabulary(session) if session.ranks.rank == 0 else None)
    captions = WordTokenizer(words, max_tokens)
    return Stage1Model(tok, captions.size, projection_dim=projection_dim, max_tokens=max_tokens), captions


def load_official(model: Stage1Model, path: Path) -> list[str]:
    """Load an official file into stage 1's model: blip2_pretrained.pth, a stage-1 checkpoint, or eva_vit_g.pth.

    Returns:
        Names of the model's tensors that the file doesn't have; these keep their weights.
    """
    file = TensorFile(path)
    prefix = VIT_PREFIX if "patch_embed.proj.weight" in file.entries else ""
    tensors = {prefix + name: tensor for name, tensor in file.read(file.entries)}
    return load_official_stage1(model, tensors, source=str(path))


def _vocabulary(session: TokenizerSession) -> tuple[str, ...]:
    """Return the words of the first captions of a shuffled epoch, saved in the output for a resumed run."""
    output, pairs = session.run.output, session.pairs
    if not session.fresh and (output / VOCABULARY).is_file():
        return WordTokenizer.load(output).words
    # Images are read along, as small as can be.
    size = 250
    batches = open_pairs(
        pairs.data, image_size=16, batch_size=size, drop_last=False, all_captions=True, normalize=False,
        workers=pairs.workers, seed=session.recipe.seed,
    )  # fmt: skip
    first = itertools.islice(iter(batches), CAPTIONS_FOR_VOCABULARY // size)
    tokenizer = WordTokenizer.of_captions(caption for batch in first for each in batch["captions"] for caption in each)
    batches.close()
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.save(output)
    return tokenizer.words
