"""Pictures of codes through diffusers: tiny pipelines of random weights, of both kinds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.generate.pictures import open_pipeline, render_pictures

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers about transformers, and of both about Python

SMALL = {"image_size": 16, "vit_depth": 1, "qformer_depth": 2, "decoder_depth": 1, "num_codes": 6}
WIDTH = 32
SEED_1 = {"head": "reverse_qformer", "generation_tokens": 77, "reverse_depth": 1}


def tokenizer(**changes: object) -> SeedTokenizer:
    torch.manual_seed(0)
    config = SeedConfig.preset("seed-tiny").to_dict() | SMALL | {"generation_dim": WIDTH} | changes
    tok = SeedTokenizer(SeedConfig.from_dict(config)).eval()
    with torch.no_grad():
        tok.quantizer.codebook.normal_()
    return tok


def clip_words(folder: Path):
    """A CLIP tokenizer that knows letters."""
    from transformers import CLIPTokenizer

    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghij", *(f"{letter}</w>" for letter in "abcdefghij")]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def parts(folder: Path, **unet: object) -> dict:
    """What both pipelines are made of."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    size = {"hidden_size": WIDTH, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 1}
    text = CLIPTextConfig(vocab_size=22, bos_token_id=0, eos_token_id=1, pad_token_id=1, **size)
    blocks = {"block_out_channels": (32, 64), "layers_per_block": 1, "sample_size": 8, "in_channels": 4}
    ways = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D",
            "CrossAttnUpBlock2D"), "cross_attention_dim": WIDTH, "attention_head_dim": 4}  # fmt: skip
    layers = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    model = diffusers.UNet2DConditionModel(**blocks, **ways, **unet)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "attn2" in name or "class_embedding" in name:
                values.mul_(10)  # what it reads must be seen in the picture
    return {
        "tokenizer": clip_words(folder),
        "text_encoder": CLIPTextModel(text),
        "unet": model,
        "scheduler": diffusers.DDIMScheduler(),
        "vae": diffusers.AutoencoderKL(block_out_channels=[32, 64], latent_channels=4, **layers),
    }


def unclip(folder: Path) -> Path:
    import diffusers
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    size = {"hidden_size": WIDTH, "projection_dim": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4}
    eye = CLIPVisionConfig(intermediate_size=37, patch_size=16, image_size=32, **size)
    condition = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * WIDTH}
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(crop_size=32, size=32),
        image_encoder=CLIPVisionModelWithProjection(eye).eval(),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=WIDTH),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        **parts(folder, **condition),
    )
    pipeline.save_pretrained(folder / "saved")
    return folder / "saved"


def stable(folder: Path) -> Path:
    import diffusers

    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    diffusers.StableDiffusionPipeline(**parts(folder), **none).save_pretrained(folder / "saved")
    return folder / "saved"


@pytest.mark.slow  # diffusers alone takes long to import
@pytest.mark.parametrize(("make", "changes"), [(unclip, {}), (stable, SEED_1)], ids=["seed-2", "seed-1"])
def test_a_picture_is_that_of_its_codes_in_any_batch(make, changes: dict, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tok = tokenizer(**changes)
    pipeline = open_pipeline(make(tmp_path), tok)
    codes = torch.randint(tok.config.codebook_size, (2, 6), generator=torch.Generator().manual_seed(0))
    first, second = (np.asarray(picture) for picture in render_pictures(pipeline, tok, codes, steps=2, seed=3))
    assert first.shape == second.shape == (16, 16, 3)
    (alone,) = render_pictures(pipeline, tok, codes[1:], steps=2, seed=4)
    assert np.abs(np.asarray(alone).astype(int) - second).max() <= 1, "the batch doesn't change it"
    (other,) = render_pictures(pipeline, tok, codes[:1], steps=2, seed=4)
    assert np.abs(np.asarray(other).astype(int) - second).max() > 1, "the codes do"


@pytest.mark.slow
def test_a_decoder_of_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must read embeddings of width 48, got 32"):
        open_pipeline(unclip(tmp_path), tokenizer(generation_dim=48))


def test_a_folder_without_a_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must be a folder of a diffusers pipeline"):
        open_pipeline(tmp_path, tokenizer())
