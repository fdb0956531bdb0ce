"""The committed shapes-sd is a plain pipeline, driven by codes that are seed-tiny's own."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

from seed_fast import SeedTokenizer
from seed_fast.data import shapes
from tests.examples import example


@pytest.fixture(scope="module")
def script():
    return example("train_shapes_sd")


def test_the_aligned_tokenizer_has_the_codes_of_seed_tiny(script):
    pictures = [shapes.render(shapes.scene(11, index, "test"), 64) for index in range(16)]
    tok = SeedTokenizer.from_pretrained(script.FOLDER / script.TOKENIZER_FOLDER, dtype=torch.float32)
    codes = tok.encode(pictures)
    assert torch.equal(codes, SeedTokenizer.from_pretrained("seed-tiny", dtype=torch.float32).encode(pictures))
    assert tok.decode(codes).shape == (16, script.TOKENS, script.TEXT_WIDTH)


def test_plain_diffusers_draws_what_the_generator_makes_of_codes(script):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(script.FOLDER, dtype=torch.float32)
    tok = SeedTokenizer.from_pretrained(script.FOLDER / script.TOKENIZER_FOLDER, dtype=torch.float32)
    features = tok.decode(tok.encode([shapes.render(shapes.scene(11, 0, "test"), 64)])).clone()
    image = pipeline(prompt_embeds=features, num_inference_steps=2).images[0]
    assert image.size == (64, 64)


def test_an_interrupted_training_ends_with_the_weights_of_a_whole_one(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "SAVE_EVERY", 2)

    def trained(name, stop=None):
        torch.manual_seed(0)
        modules = torch.nn.ModuleDict({"linear": torch.nn.Linear(3, 2)})

        def loss_of(generator, step):
            if step == stop:
                raise KeyboardInterrupt
            return modules["linear"](torch.randn(4, 3, generator=generator)).square().mean()

        return script.fit(tmp_path / name, modules, loss_of, 7, lr=0.1)["linear"].weight

    with pytest.raises(KeyboardInterrupt):
        trained("stopped.pt", stop=5)
    assert torch.equal(trained("stopped.pt"), trained("whole.pt"))
