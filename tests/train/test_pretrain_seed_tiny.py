"""How seed-tiny begins: what is asked of which patch and which query, and that a run goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.convert.contrast import load_contrast
from seed_fast.data import shapes
from seed_fast.data.pairs import open_pairs
from tests.examples import example

CONFIG = replace(SeedConfig.preset("seed-tiny"), vit_depth=1, qformer_depth=2, decoder_depth=1)


@pytest.fixture(scope="module")
def script():
    return example("pretrain_seed_tiny")


class Oracle(nn.Module):
    """In the place of ViT and Q-Former: features [B, tokens, words] that hold a one where a token knows a word."""

    def __init__(self, words, tokens, knows):
        super().__init__()
        self.words, self.tokens, self.knows = words, tokens, knows
        self.scenes = []

    def forward(self, _):
        features = torch.zeros(len(self.scenes), self.tokens, len(self.words))
        for row, scene in enumerate(self.scenes):
            for token, question, word in self.knows(scene):
                features[row, token, self.words.index((question, word))] = 1
        return features

    def read_by(self, layers, answers):
        for question, layer in layers.items():
            columns = [self.words.index((question, word)) for word in answers[question]]
            layer.weight.data = torch.eye(len(self.words))[columns]
            layer.bias.data.zero_()


def at_centres(scene):
    for item in scene.objects:
        for question in ("shape", "size", "colour", "position"):
            yield 1 + 8 * (item.y // 8) + item.x // 8, question, getattr(item, question)


def by_queries(scene):
    yield 0, "background", scene.background
    yield 1, "pattern", scene.pattern
    things = sorted(scene.objects, key=lambda item: (3 * item.y // 64, 3 * item.x // 64))
    for place in range(4):
        for at, question in enumerate(("shape", "size", "colour", "position", "shape", "size", "colour")):
            word = getattr(things[place], question) if place < len(things) else "nothing"
            yield 2 + 7 * place + at, question, word


@pytest.mark.parametrize("blind", ["", "vit", "qformer"])
def test_centres_and_queries_are_asked_for_what_is_there(script, blind):
    batch = next(iter(open_pairs("shapes:16", image_size=64, batch_size=16, seed=3)))
    answers = script.OF_SCENES | {name: (*words, "nothing") for name, words in script.OF_OBJECTS.items()}
    words = [(question, word) for question, names in answers.items() for word in names]
    task = script.NameObjects(SeedTokenizer(CONFIG))
    task.vit, task.qformer = Oracle(words, 65, at_centres), Oracle(words, 32, by_queries)
    task.vision_norm = nn.Identity()
    task.vit.read_by(task.of_patches, answers)
    task.qformer.read_by(task.of_queries, answers)
    scenes = script.scenes(batch)
    for name in ("vit", "qformer"):
        getattr(task, name).scenes = scenes[::-1] if name == blind else scenes
    assert task(batch)["loss"].isfinite()
    found = task.validate([batch])
    assert len(found) == 10
    for question, share in found.items():
        if blind == ("qformer" if question.startswith("query") else "vit"):
            assert share < 0.7, question
        else:
            assert share == 1, question


def test_siblings_are_asked_for_what_they_show(script):
    batch = next(iter(open_pairs("shapes:16,family=8,seed=3", image_size=64, batch_size=16)))
    assert [shapes.caption(scene) for scene in script.scenes(batch)] == batch["captions"]


def test_a_run_that_was_stopped_goes_on_and_leaves_a_folder_for_stage_1(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "SAVE_EVERY", 2)
    monkeypatch.setattr(script, "VALIDATION", "shapes:32")

    def run(name, stop_at=None):
        steps = []

        def loss(self, *args, loss=script.NameObjects.loss):
            steps.append(None)
            if len(steps) == stop_at:
                raise KeyboardInterrupt
            return loss(self, *args)

        with monkeypatch.context() as patched:
            patched.setattr(script.NameObjects, "loss", loss)
            script.pretrain(CONFIG, tmp_path / name, pictures=(256, 512))
        return len(steps)

    assert run("whole") == 4 + 4
    with pytest.raises(KeyboardInterrupt):
        run("parts", stop_at=4)
    with pytest.raises(KeyboardInterrupt):
        run("parts", stop_at=6)  # two of the names, whose end no checkpoint saw, and three of both
    assert not (tmp_path / "parts" / script.START).exists()
    assert run("parts") == 2
    whole, parts = (tmp_path / name / script.START for name in ("whole", "parts"))
    initial = script.initial(CONFIG).state_dict()
    learned = ("vit.", "vision_norm.", "qformer.")
    tok = SeedTokenizer.from_pretrained(parts)
    for name, value in SeedTokenizer.from_pretrained(whole).state_dict().items():
        assert torch.equal(value, tok.state_dict()[name]), name
        assert torch.equal(value, initial[name]) != name.startswith(learned), name
    (model, captions), (other, _) = load_contrast(parts, tok), load_contrast(whole, tok)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert captions.max_tokens == script.MAX_TOKENS
