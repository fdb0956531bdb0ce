"""`SeedTokenizer`: what goes in, what comes out, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.convert import from_official, official_shapes
from seed_fast.testing import random_official_state_dict

TINY = SeedConfig.preset("seed-tiny")


@pytest.fixture(scope="module")
def tok():
    return SeedTokenizer.from_pretrained("seed-tiny")


@pytest.fixture(scope="module")
def photo():
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((120, 90), Image.Resampling.BICUBIC))


def test_the_embedded_model_is_trained_and_of_its_preset(tok):
    assert tok.trained is True
    assert (tok.config, tok.dtype, tok.training) == (TINY, torch.float32, False)


def test_one_image_has_the_same_codes_in_every_form(tok, photo, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    pixels = tok.preprocess(photo)
    arrays = [photo, photo[None], torch.from_numpy(photo.copy()), Image.fromarray(photo)]
    codes = [tok.encode(form) for form in [*arrays, path, str(path), [path], pixels]]
    assert codes[0].shape == (1, 32)
    assert all(torch.equal(codes[0], other) for other in codes)


def test_a_batch_has_the_codes_of_its_images(tok, photo):
    images = [photo, photo[::-1], photo[:, ::-1]]
    batch = tok.encode(images)
    assert torch.equal(batch, torch.cat([tok.encode(image) for image in images]))
    assert len(batch.unique(dim=0)) == 3


def test_an_empty_batch_has_no_codes(tok):
    assert tok.encode([]).shape == (0, 32)
    assert tok.decode(torch.zeros(0, 32, dtype=torch.int64)).shape == (0, 128)


def test_stages_compose_to_encode(tok, photo):
    pixels = tok.preprocess([photo])
    features = tok.image_features(pixels)
    assert features.shape == (1, TINY.num_tokens, TINY.vit_dim)
    causal = tok.query_embeddings(features)
    assert torch.equal(causal, tok.causal_embeddings(pixels))
    assert torch.equal(tok.lookup(causal), tok.encode(photo))


@pytest.mark.parametrize("num_codes", [32, 5])
def test_an_embedding_depends_on_no_later_query(num_codes):
    config = replace(TINY, num_codes=num_codes)
    tok = from_official(random_official_state_dict(config, seed=1), config)
    features = torch.randn(2, config.num_tokens, config.vit_dim)
    before = tok.query_embeddings(features)
    with torch.no_grad():
        tok.qformer.query_tokens[:, 3:] += torch.randn(config.qformer_dim)
    after = tok.query_embeddings(features)
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().amax(dim=-1).min() > 0.01


def test_decode_shapes_follow_the_head():
    codes = torch.randint(TINY.codebook_size, (3, 32))
    image = SeedTokenizer(replace(TINY, head="reverse_qformer"))
    text = SeedTokenizer(replace(TINY, head="reverse_qformer", generation_tokens=77))
    assert SeedTokenizer(TINY).decode(codes).shape == (3, 128)
    assert image.decode(codes.int()).shape == (3, 128)
    assert text.decode(codes).shape == (3, 77, 128)
    assert image.reconstruct(codes).shape == (3, 32, 128)
    with pytest.raises(ValueError, match="SEED-1, which has none"):
        text.reconstruct(codes)


@pytest.mark.parametrize(
    ("codes", "error", "message"),
    [
        (torch.zeros(1, 31, dtype=torch.int64), ValueError, r"codes must be \[B, 32\], got \[1, 31\]"),
        (torch.zeros(32, dtype=torch.int64), ValueError, r"codes must be \[B, 32\], got \[32\]"),
        (torch.full((1, 32), 2048), ValueError, r"codes must be in 0\.\.2047, got 2048\.\.2048"),
        (torch.full((1, 32), -1), ValueError, r"codes must be in 0\.\.2047, got -1\.\.-1"),
        (torch.zeros(1, 32), TypeError, "codes must be integers, got torch.float32"),
    ],
)
def test_decode_names_codes_that_are_none(tok, codes, error, message):
    with pytest.raises(error, match=message):
        tok.decode(codes)


@pytest.mark.parametrize("shape", [(1, 3, 64, 63), (1, 1, 64, 64), (3, 64, 64), (1, 64, 64, 3)])
def test_pixels_of_a_wrong_shape_are_refused(tok, shape):
    with pytest.raises(ValueError, match=r"\[B, 3, 64, 64\], got"):
        tok.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"\[B, 3, 64, 64\], got"):
        tok.image_features(torch.zeros(shape))


def test_an_image_with_embeddings_that_are_not_finite_is_named(tok):
    pixels = torch.zeros(3, 3, 64, 64)
    pixels[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="image 1 must be finite"):
        tok.encode(pixels)


def test_weights_in_half_precision_that_overflow_are_an_error_and_no_code(tok, tmp_path, photo):
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    half = SeedTokenizer.from_pretrained("seed-tiny", dtype=torch.float16)
    with torch.no_grad():
        half.vit.cls_token.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"photo\.png must be finite, got NaN or infinity in torch.float16"):
        half.encode([path])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_nearly_the_float32_embeddings(tok, photo, dtype):
    half = SeedTokenizer.from_pretrained("seed-tiny", dtype=dtype)
    pixels = tok.preprocess([photo, photo[::-1]])
    with torch.inference_mode():
        want, got = tok.causal_embeddings(pixels), half.causal_embeddings(pixels)
    assert got.dtype == dtype
    assert (got.float() - want).norm() / want.norm() < 16 * torch.finfo(dtype).eps
    codes = half.encode(pixels)
    assert half.decode(codes).dtype == dtype
    assert (codes == tok.encode(pixels)).float().mean() > 0.5


def test_construction_on_meta_takes_no_memory_and_has_the_official_size():
    with torch.device("meta"):
        tok = SeedTokenizer(SeedConfig.preset("seed-2"))
    assert {parameter.device.type for parameter in tok.parameters()} == {"meta"}
    sizes = official_shapes(tok.config)
    assert sum(parameter.numel() for parameter in tok.parameters()) == sum(shape.numel() for shape in sizes.values())


def test_initial_weights_follow_the_official_rules():
    torch.manual_seed(0)
    tok = SeedTokenizer(TINY)
    assert all(parameter.isfinite().all() for parameter in tok.parameters())
    last = tok.vit.blocks[3]
    assert last.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert last.mlp.fc2.weight.std().item() == pytest.approx(0.02 / 8**0.5, rel=0.05)
    assert tok.qformer.query_tokens.std().item() == pytest.approx(0.02, rel=0.1)
    assert tok.quantizer.codebook.abs().max().item() == pytest.approx(1 / TINY.codebook_size, rel=0.01)
    assert not tok.generator.position_embedding.any()
    torch.manual_seed(0)
    again = SeedTokenizer(TINY)
    assert all(torch.equal(a, b) for a, b in zip(tok.parameters(), again.parameters(), strict=True))
