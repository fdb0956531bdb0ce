"""The image encoder that seed-tiny begins with: what EVA-CLIP is to SEED. Minutes on one CPU core.

SEED takes an image encoder that has learned from billions of pictures. None has 64 px and patches of 8, and a contrast
between whole pictures and captions taught a new one colours and places, but hardly any shapes. So it learns first
what lies where: from the feature of the patch at an object's centre, one linear layer names the object's shape, size
and colour. The layer is then dropped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.data import shapes
from seed_fast.data.pairs import open_pairs
from seed_fast.model.vit import ViT
from seed_fast.train.batches import Batch, Batches
from seed_fast.train.loop import Loop
from seed_fast.train.ranks import Ranks
from seed_fast.train.recipe import Recipe, Run

# Other scenes than stage 1 learns from.
DATA, VALIDATION = "shapes:204800,seed=2", "shapes:512"
BATCH, SEED, SAVE_EVERY = 64, 42, 400
VISION, RUN = "vision", "vision-run"  # below what --runs names
ANSWERS = {"shape": shapes.SHAPES, "size": tuple(shapes.SIZES), "colour": tuple(shapes.COLOURS)}


class NameObjects(nn.Module):
    """What the loop trains: a ViT, and a linear layer that names the object at a place.

    Shapes: B pictures, R objects in all of them together, L tokens of the ViT, D its width.
    """

    def __init__(self, vit: ViT, config: SeedConfig) -> None:
        super().__init__()
        self.vit, self._patch, self._side = vit, config.patch_size, config.image_size // config.patch_size
        self._width = config.vit_dim
        self.names = nn.Linear(config.vit_dim, sum(map(len, ANSWERS.values())))

    def answers(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """About every object of a batch: {question: logits [R, answers]}, and {question: right answer [R]}."""
        things = [(row, item) for row, scene in enumerate(scenes(batch)) for item in scene.objects]
        rows, tokens = torch.tensor([(row, 1 + self._patch_of(item)) for row, item in things]).T
        features_BLD = self.vit(batch["pixels"])
        logits = self.names(F.layer_norm(features_BLD[rows, tokens], [self._width]))
        given = dict(zip(ANSWERS, logits.float().split([len(names) for names in ANSWERS.values()], dim=1), strict=True))
        right = {
            name: torch.tensor([names.index(getattr(item, name)) for _, item in things])
            for name, names in ANSWERS.items()
        }
        return given, right

    def _patch_of(self, item: shapes.Object) -> int:
        """The patch in which its centre lies; coordinates are 64ths of the picture's side."""
        row, column = (place * self._side // shapes.SIDE for place in (item.y, item.x))
        return row * self._side + column

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of a batch {"pixels", "keys", ...}: the sum of the cross-entropies of the questions."""
        given, right = self.answers(batch)
        return {"loss": torch.stack([F.cross_entropy(given[name], right[name]) for name in ANSWERS]).sum()}

    @torch.no_grad()
    def validate(self, batches: Batches) -> dict[str, float]:
        """The share of objects whose shape, size, colour is named right."""
        hits: dict[str, list[Tensor]] = {name: [] for name in ANSWERS}
        for batch in batches:
            given, right = self.answers(batch)
            for name, found in hits.items():
                found.append(given[name].argmax(dim=1) == right[name])
        return {name: torch.cat(found).double().mean().item() for name, found in hits.items()}


def scenes(batch: Batch) -> list[shapes.Scene]:
    """What its pictures show, by their keys."""
    parts = [key.partition(":")[2].split("/") for key in batch["keys"]]
    return [shapes.scene(int(seed), int(index), split) for split, seed, index in parts]


@torch.no_grad()
def initial(config: SeedConfig) -> SeedTokenizer:
    """Random weights that suit this width.

    The official deviation of 0.02 is for rows of 768 and more numbers: at 128, attention would begin by seeing nothing,
    and the position embedding as noise. Here each row of a weight begins with about unit length, and positions as waves
    over rows and columns.
    """
    torch.manual_seed(SEED)
    tok = SeedTokenizer(config)
    for part in (tok.vit, tok.qformer):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
    for block in tok.vit.blocks:
        for out in (block.attn.proj, block.mlp.fc2):
            out.weight *= (2 * config.vit_depth) ** -0.5  # so that the residual stream keeps its size
    side, quarter = config.image_size // config.patch_size, config.vit_dim // 4
    angles = torch.arange(side)[:, None] * 100 ** (-torch.arange(quarter) / quarter)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1) / 2  # [side, D / 2]
    grid = torch.cat([waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)], dim=2)
    tok.vit.position_embedding[0, 1:] = grid.flatten(0, 1)
    return tok


def pretrain(config: SeedConfig, folder: Path, run: Path, data: str = DATA) -> None:
    """Train, or go on, and write a checkpoint folder with the encoder and an untrained rest for stage 1 to begin with.

    Args:
        config: of the model; pictures of 64ths need an image size that is a multiple of the patch size.
        folder: where the model goes.
        run: where checkpoints and the log go.
        data: `shapes:COUNT`, and a seed.
    """
    tok = initial(config)
    common = {"image_size": config.image_size, "batch_size": BATCH, "seed": SEED, "workers": 1}
    batches, validation = open_pairs(data, **common), open_pairs(VALIDATION, split="val", **common)
    recipe = Recipe(
        batch_size=BATCH, epochs=1, epoch_steps=len(batches.source) // BATCH, lr=1e-3, min_lr=1e-5, warmup_lr=1e-5,
        warmup_steps=200, cosine="step", clip=1.0, dtype="bfloat16", seed=SEED,
    )  # fmt: skip
    task = NameObjects(tok.vit, config)
    output = Run(run, save_every=SAVE_EVERY, validate_every=2 * SAVE_EVERY, resume=True)
    ranks = Ranks.join(torch.device("cpu"))
    done = Loop(task, batches, recipe, output, ranks, validation=validation, about={"data": data})()
    batches.close()
    validation.close()
    if not done:
        sys.exit(f"{run}: stopped, with a checkpoint; the same command goes on")
    tok.save_pretrained(folder)


def main() -> int:
    """Pretrain as `make seed-tiny` does, and no more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("out/seed-tiny"), help="where the model and its run are left")
    runs = parser.parse_args().runs
    pretrain(SeedConfig.preset("seed-tiny"), runs / VISION, runs / RUN)
    return 0


if __name__ == "__main__":
    sys.exit(main())
