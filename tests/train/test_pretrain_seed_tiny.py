"""How the image encoder of seed-tiny begins: what is asked of which patch, and that a run goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.data.pairs import open_pairs
from tests.examples import example

CONFIG = replace(SeedConfig.preset("seed-tiny"), vit_depth=1, qformer_depth=2, decoder_depth=1)


@pytest.fixture(scope="module")
def script():
    return example("pretrain_seed_tiny")


class Oracle(nn.Module):
    """A ViT that knows: at the patch of an object's centre it says what is there, everywhere else nothing."""

    def __init__(self, answers):
        super().__init__()
        self.answers = answers
        self.scenes = []

    def forward(self, pixels):
        width = sum(map(len, self.answers.values()))
        features = torch.zeros(len(pixels), 65, width)
        for row, scene in enumerate(self.scenes):
            for item in scene.objects:
                token = features[row, 1 + 8 * (item.y // 8) + item.x // 8]
                begin = 0
                for name, names in self.answers.items():
                    token[begin + names.index(getattr(item, name))] = 1
                    begin += len(names)
        return features


def test_every_object_is_asked_for_at_the_patch_of_its_centre(script):
    batch = next(iter(open_pairs("shapes:16", image_size=64, batch_size=16, seed=3)))
    vit = Oracle(script.ANSWERS)
    task = script.NameObjects(vit, replace(CONFIG, vit_dim=23, vit_heads=1))
    nn.init.eye_(task.names.weight)
    vit.scenes = script.scenes(batch)
    assert task.validate([batch]) == {"shape": 1.0, "size": 1.0, "colour": 1.0}
    assert task(batch)["loss"].isfinite()
    vit.scenes = vit.scenes[::-1]
    assert task.validate([batch])["shape"] < 0.5


def test_a_run_that_was_stopped_goes_on_and_leaves_a_folder_for_stage_1(script, tmp_path, monkeypatch):
    def run(name, stop_at=None):
        steps = []

        def forward(self, batch, forward=script.NameObjects.forward):
            steps.append(None)
            if len(steps) == stop_at:
                raise KeyboardInterrupt
            return forward(self, batch)

        with monkeypatch.context() as patched:
            patched.setattr(script.NameObjects, "forward", forward)
            patched.setattr(script, "SAVE_EVERY", 2)
            script.pretrain(CONFIG, tmp_path / name, tmp_path / f"{name}-run", "shapes:384")
        return len(steps)

    assert run("whole") == 6
    with pytest.raises(KeyboardInterrupt):
        run("halves", stop_at=4)
    assert not (tmp_path / "halves").exists()
    assert run("halves") == 4  # the third step, whose end no checkpoint saw, comes again
    whole, halves = (SeedTokenizer.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "halves"))
    initial = script.initial(CONFIG).state_dict()
    for name, value in whole.items():
        assert torch.equal(value, halves[name]), name
        assert torch.equal(value, initial[name]) != name.startswith("vit."), name
