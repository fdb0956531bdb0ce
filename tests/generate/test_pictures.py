"""Pictures of codes through diffusers: tiny pipelines of random weights, of both kinds."""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.generate.pictures import Rendering, open_pipeline, render_pictures

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
    with torch.no_grad():
        pipeline.image_normalizer.mean.normal_()
        pipeline.image_normalizer.std.uniform_(0.5, 2)
    pipeline.save_pretrained(folder / "saved")
    return folder / "saved"


def stable(folder: Path) -> Path:
    import diffusers

    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    diffusers.StableDiffusionPipeline(**parts(folder), **none).save_pretrained(folder / "saved")
    return folder / "saved"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pipeline of the layout of each official one, saved by plain diffusers."""
    torch.manual_seed(0)
    return {"seed-2": unclip(tmp_path_factory.mktemp("seed-2")), "seed-1": stable(tmp_path_factory.mktemp("seed-1"))}


def codes_for(tok: SeedTokenizer, rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(tok.config.codebook_size, (rows, 6), generator=torch.Generator().manual_seed(seed))


def as_levels(pictures: list) -> np.ndarray:
    return np.stack([np.asarray(picture).astype(int) for picture in pictures])


def class_labels(pipeline, embeddings: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Labels of unCLIP at noise level 0: normalised, noised by the first step, and beside a sinusoid of time 0."""
    mean, std = pipeline.image_normalizer.mean.double(), pipeline.image_normalizer.std.double()
    first, begin = (math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2 for time in (0.001, 0.0))
    kept = first / begin
    noisy = math.sqrt(kept) * (embeddings - mean) / std + math.sqrt(1 - kept) * noise
    ones = torch.ones(len(embeddings), WIDTH // 2, dtype=torch.float64)  # cosine of 0; its sine is 0
    return torch.cat([noisy * std + mean, ones, 0 * ones], 1)


def directly(pipeline, embeddings, negative, seeds, *, steps: int, guidance: float) -> np.ndarray:
    """Pictures by the definition, in float64: guided DDIM from the seeds' noise, then the decoder of the VAE."""
    pipeline = copy.deepcopy(pipeline)
    for part in ("unet", "vae", "text_encoder"):
        getattr(pipeline, part).double()
    reads_text, rows = embeddings.ndim == 3, len(embeddings)
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    words = pipeline.tokenizer("", padding="max_length", max_length=77, return_tensors="pt").input_ids
    empty = pipeline.text_encoder(words)[0].expand(rows, -1, -1)
    embeddings = embeddings.double()
    if negative is not None:
        negative = negative.double().expand_as(embeddings)
    labels = None
    if reads_text:
        conditions = torch.cat([empty if negative is None else negative, embeddings])
    else:
        conditions = torch.cat([empty, empty])
        shape = (1, WIDTH)
        wanted = class_labels(pipeline, embeddings, torch.cat([torch.randn(shape, generator=each) for each in noise]))
        unwanted = torch.zeros_like(wanted)
        if negative is not None:
            drawn = torch.cat([torch.randn(shape, generator=each) for each in noise])
            unwanted = class_labels(pipeline, negative, drawn)
        labels = torch.cat([unwanted, wanted])

    latents = torch.cat([torch.randn(1, 4, 8, 8, generator=each) for each in noise]).double()
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    stride = 1000 // steps
    settings = pipeline.scheduler.config  # StableDiffusionPipeline sets two of them as the official model has them
    for step in reversed(range(settings.steps_offset, steps * stride, stride)):
        now, then = kept[step], kept[step - stride] if step >= stride else torch.ones((), dtype=torch.float64)
        both = pipeline.unet(torch.cat([latents, latents]), step, conditions, class_labels=labels).sample
        without, with_ = both.chunk(2)
        guided = without + guidance * (with_ - without)
        clean = (latents - (1 - now).sqrt() * guided) / now.sqrt()
        clean = clean.clamp(-1, 1) if settings.clip_sample else clean
        latents = then.sqrt() * clean + (1 - then).sqrt() * guided
    pixels = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return (255 * (pixels / 2 + 0.5).clamp(0, 1)).round().permute(0, 2, 3, 1).numpy().astype(int)


KINDS = pytest.mark.parametrize(("kind", "changes"), [("seed-2", {}), ("seed-1", SEED_1)], ids=["seed-2", "seed-1"])


@KINDS
@pytest.mark.parametrize("guided_away", [False, True])
@torch.inference_mode()
def test_pictures_are_those_of_the_definition(kind: str, changes: dict, guided_away: bool, folders: dict) -> None:
    tok = tokenizer(**changes)
    pipeline = open_pipeline(folders[kind], tok)
    codes = codes_for(tok, 2)
    negative = codes_for(tok, 1, seed=5)[0] if guided_away else None
    given = {} if negative is None else {"negative": negative}
    ours = as_levels(render_pictures(pipeline, tok, codes, steps=3, guidance=4, seed=8, **given))
    away = None if negative is None else tok.decode(negative[None])[0]
    expected = directly(pipeline, tok.decode(codes), away, [8, 9], steps=3, guidance=4)
    assert np.abs(ours - expected).max() <= 1
    # and the comparison can fail: it sees guidance, its direction, and the noise
    away = tok.decode(codes_for(tok, 1, seed=6))[0]
    for other in (
        directly(pipeline, tok.decode(codes), away, [8, 9], steps=3, guidance=4),
        directly(pipeline, tok.decode(codes), None, [8, 9], steps=3, guidance=2),
        directly(pipeline, tok.decode(codes), None, [7, 9], steps=3, guidance=4),
    ):
        assert np.abs(ours - other).max() > 1


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pictures_are_those_of_plain_diffusers_in_every_dtype(
    kind: str, changes: dict, dtype: torch.dtype, folders: dict
) -> None:
    import diffusers

    tok = tokenizer(**changes)
    plain = diffusers.DiffusionPipeline.from_pretrained(folders[kind], safety_checker=None, torch_dtype=dtype)
    plain.set_progress_bar_config(disable=True)
    codes = codes_for(tok, 3)
    embeddings = tok.decode(codes).to(dtype)
    given = {"image_embeds": embeddings, "prompt": [""] * 3} if kind == "seed-2" else {"prompt_embeds": embeddings}
    noise = [torch.Generator().manual_seed(seed) for seed in (4, 5, 6)]
    expected = as_levels(plain(**given, generator=noise, num_inference_steps=2).images)
    ours = render_pictures(open_pipeline(folders[kind], tok, dtype=dtype), tok, codes, steps=2, seed=4)
    assert (as_levels(ours) == expected).all()


@KINDS
def test_a_picture_is_that_of_its_codes_in_any_batch(kind: str, changes: dict, folders: dict) -> None:
    tok = tokenizer(**changes)
    pipeline = open_pipeline(folders[kind], tok, vae_slicing=True)
    codes = codes_for(tok, 2)
    first, second = as_levels(render_pictures(pipeline, tok, codes, steps=2, seed=3))
    assert first.shape == second.shape == (16, 16, 3)
    (alone,) = as_levels(render_pictures(pipeline, tok, codes[1:], steps=2, seed=4))
    assert np.abs(alone - second).max() <= 1, "the batch doesn't change it"
    (other,) = as_levels(render_pictures(pipeline, tok, codes[:1], steps=2, seed=4))
    assert np.abs(other - second).max() > 1, "the codes do"
    (large,) = render_pictures(pipeline, tok, codes[:1], steps=1, size=24)
    assert large.size == (24, 24)
    assert render_pictures(pipeline, tok, codes[:0]) == []


@pytest.mark.parametrize(
    ("reads_text", "negative", "expected"),
    [(True, False, (50, 7.5)), (True, True, (50, 7.5)), (False, False, (20, 10.0)), (False, True, (20, 5.0))],
)
def test_steps_and_guidance_are_the_official_ones(reads_text: bool, negative: bool, expected: tuple) -> None:
    resolved = Rendering().resolved(reads_text, negative=negative)
    assert (resolved.steps, resolved.guidance) == expected
    assert Rendering(3, 1.0, 64).resolved(reads_text) == Rendering(3, 1.0, 64)


@pytest.mark.parametrize("values", [{"steps": 0}, {"guidance": 0.5}, {"guidance": float("nan")}, {"size": 20}])
def test_a_rendering_out_of_range_is_refused(values: dict) -> None:
    with pytest.raises(ValueError, match=f"rendering: {next(iter(values))} must be"):
        Rendering(**values)


def test_a_decoder_of_another_kind_is_refused(folders: dict) -> None:
    with pytest.raises(ValueError, match="must read embeddings of width 48, got 32"):
        open_pipeline(folders["seed-2"], tokenizer(generation_dim=48))
    with pytest.raises(ValueError, match="must read text features, which the tokenizer makes, got a pipeline that"):
        open_pipeline(folders["seed-2"], tokenizer(**SEED_1))
    with pytest.raises(ValueError, match="must read image embeddings, which the tokenizer makes, got a pipeline that"):
        open_pipeline(folders["seed-1"], tokenizer())
    with pytest.raises(ValueError, match="must read 90 text features, got 77 at most"):
        open_pipeline(folders["seed-1"], tokenizer(**SEED_1 | {"generation_tokens": 90}))
    with pytest.raises(ValueError, match="must have a GPU"):
        open_pipeline(folders["seed-2"], tokenizer(), cpu_offload=True)


def test_a_folder_without_a_pipeline_is_told_what_it_needs_and_where_that_comes_from(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must be a folder of a diffusers pipeline") as error:
        open_pipeline(tmp_path, tokenizer())
    assert "stabilityai/stable-diffusion-2-1-unclip" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"no such folder .*CompVis/stable-diffusion-v1-4"):
        open_pipeline(tmp_path / "missing", tokenizer(**SEED_1))


def test_missing_and_damaged_files_of_a_pipeline_are_named(folders: dict, tmp_path: Path) -> None:
    shutil.copytree(folders["seed-2"], tmp_path / "unclip")
    shutil.rmtree(tmp_path / "unclip/image_encoder")  # which codes make unnecessary
    open_pipeline(tmp_path / "unclip", tokenizer())
    weights = tmp_path / "unclip/vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError, match="unclip: can't be loaded as a NegativeUnCLIPPipeline: "):
        open_pipeline(tmp_path / "unclip", tokenizer())
    weights.unlink()
    (tmp_path / "unclip/scheduler/scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError) as error:
        open_pipeline(tmp_path / "unclip", tokenizer())
    lacking = "got one without vae/diffusion_pytorch_model.safetensors, scheduler/scheduler_config.json"
    assert str(error.value).endswith(lacking)


@pytest.mark.slow  # timing
@KINDS
def test_eight_pictures_together_take_less_than_half_of_the_time(kind: str, changes: dict, folders: dict) -> None:
    tok = tokenizer(**changes)
    pipeline = open_pipeline(folders[kind], tok)
    codes = codes_for(tok, 8)

    def seconds(rows: int) -> float:
        begin = time.perf_counter()
        for first in range(0, 8, rows):
            render_pictures(pipeline, tok, codes[first : first + rows], steps=5)
        return time.perf_counter() - begin

    seconds(8)
    pairs = sorted(seconds(1) / seconds(8) for _ in range(5))
    assert pairs[2] >= 2, pairs
