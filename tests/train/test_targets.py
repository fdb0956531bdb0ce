"""Targets of stage 2 from local CLIP folders and from stage 1, and a codebook that begins where the data is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from seed_fast import SeedTokenizer
from seed_fast.distributed import Ranks
from seed_fast.testing import check_budget
from seed_fast.train.codebook import codebook_from_data, k_means
from seed_fast.train.targets import open_target
from tests.train.tiny import CONFIG, ListBatches, stage1

CPU = torch.device("cpu")


@pytest.fixture
def clip(tmp_path):
    """A tiny CLIP as transformers saves it, and the vocabulary of its tokenizer."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(**sizes, image_size=16, patch_size=8, projection_dim=16)
    transformers.CLIPVisionModelWithProjection(vision).save_pretrained(tmp_path / "vision")
    text = transformers.CLIPTextConfig(
        **sizes, vocab_size=10, max_position_embeddings=7, bos_token_id=8, eos_token_id=9, pad_token_id=9
    )
    transformers.CLIPTextModel(text).save_pretrained(tmp_path / "text")
    words = ["r", "e", "d", "r</w>", "e</w>", "d</w>", "a", "a</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(tmp_path / "text")
    return tmp_path


def test_clip_image_embeddings_of_the_same_pixels(clip):
    from transformers import CLIPVisionModelWithProjection

    target = open_target(f"clip-image:{clip / 'vision'}", CONFIG, CPU)
    pixels = torch.randn(3, 3, 16, 16)
    model = CLIPVisionModelWithProjection.from_pretrained(clip / "vision").eval()
    with torch.no_grad():
        found, expected = target({"pixels": pixels}), model(pixels).image_embeds
    assert found.shape == (3, 16)
    assert torch.equal(found, expected)


def test_clip_text_features_of_the_captions(clip):
    from transformers import CLIPTextModel, CLIPTokenizer

    captions = ["red", "a red a red a red a red"]
    target = open_target(
        f"clip-text:{clip / 'text'}", replace(CONFIG, head="reverse_qformer", generation_tokens=7), CPU
    )
    rows = CLIPTokenizer.from_pretrained(clip / "text")(
        captions, padding="max_length", truncation=True, max_length=7, return_tensors="pt"
    )
    model = CLIPTextModel.from_pretrained(clip / "text").eval()
    with torch.no_grad():
        found, alone = target({"captions": captions}), target({"captions": captions[:1]})
        plain = model(input_ids=rows["input_ids"]).last_hidden_state
        truth = model.double()(input_ids=rows["input_ids"]).last_hidden_state
    assert found.shape == (2, 7, 16)
    assert not torch.equal(found[0], found[1])
    check_budget(found, truth, plain)
    check_budget(alone, truth[:1], plain[:1])


def test_stage_1s_own_text_tower():
    task = stage1()
    target = open_target("stage1-text", CONFIG, CPU, (task.model, task._captions))
    with torch.no_grad():
        found = target({"captions": ["red round", "blue"]})
        assert torch.equal(found, task.model.text_features(*task._captions(["red round", "blue"])))


def test_bad_targets_are_named(clip):
    for spec, config, message in (
        ("clip", CONFIG, "must be one of clip-image:FOLDER, clip-text:FOLDER, stage1-text, got 'clip'"),
        ("clip-image:/nowhere", CONFIG, "no such folder"),
        (f"clip-image:{clip / 'vision'}", replace(CONFIG, generation_dim=20), "1 x 20 numbers, got 1 x 16"),
        (f"clip-image:{clip / 'vision'}", replace(CONFIG, image_size=24), "images are 16 px, this tokenizer's 24"),
        (f"clip-text:{clip / 'text'}", CONFIG, "1 x 16 numbers, got 7 x 16"),
        ("stage1-text", CONFIG, "target stage1-text needs a folder of stage 1"),
    ):
        with pytest.raises(ValueError, match=message):
            open_target(spec, config, CPU)


def test_k_means_finds_clusters_and_leaves_no_entry_without_vectors():
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0], [8.0, 8.0]])
    vectors = (corners[:, None] + 0.1 * torch.randn(4, 50, 2, generator=generator)).flatten(0, 1)
    found = min((k_means(vectors, 4, seed) for seed in range(5)), key=lambda c: torch.cdist(vectors, c).amin(1).sum())
    assert torch.cdist(corners, found).amin(1).max() < 0.1
    with pytest.raises(ValueError, match="needs at least 5 finite vectors, got 4"):
        k_means(corners, 5, 0)


def test_a_codebook_from_data_is_used_and_takes_no_batch_from_training():
    torch.manual_seed(0)
    tok, batches = SeedTokenizer(CONFIG), ListBatches(8)
    next(iter(batches))
    position = batches.state_dict()
    with torch.no_grad():
        before = tok.lookup(tok.causal_embeddings(batches.pixels)).unique().numel()
        codebook_from_data(tok, batches, Ranks(0, 1, CPU), seed=0)
        after = tok.lookup(tok.causal_embeddings(batches.pixels)).unique().numel()
    assert batches.state_dict() == position
    assert after > 2 * before
    assert after >= CONFIG.codebook_size // 2
