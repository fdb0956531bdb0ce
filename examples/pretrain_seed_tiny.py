"""What seed-tiny begins with: what EVA-CLIP and BLIP-2 are to SEED. Half an hour on two CPU cores.

SEED takes an image encoder that has learned from billions of pictures, and a Q-Former that has learned to say what
they show. None has 64 px and patches of 8; and a contrast between whole pictures and captions taught new ones colours
and places, but hardly any shapes, and a whole scene in every query. So they learn first what lies where: from the
feature of the patch at an object's centre, one linear layer names the object's shape, size, colour and place; and from
the queries others name the objects in reading order, one word per query. These layers are then dropped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.convert.contrast import save_contrast
from seed_fast.data import shapes
from seed_fast.data.pairs import open_pairs
from seed_fast.data.samples import ShapesSample
from seed_fast.distributed import Ranks
from seed_fast.model.captions import CaptionTokenizer, WordTokenizer
from seed_fast.model.stage1 import Stage1Model
from seed_fast.train.batches import Batch, Batches
from seed_fast.train.loop import Loop
from seed_fast.train.recipe import Recipe, Run
from seed_fast.train.stage1 import Stage1

SEED, SAVE_EVERY = 42, 400
START, NAMES, BOTH = "start", "names", "names-and-contrast"  # below what --runs names: the model, and two runs
VALIDATION = "shapes:512"
COMMON = {"epochs": 1, "warmup_lr": 1e-5, "min_lr": 1e-5, "cosine": "step", "clip": 1.0, "dtype": "bfloat16"}
MAX_TOKENS = 48  # of a caption

OF_OBJECTS = {
    "shape": shapes.SHAPES, "size": tuple(shapes.SIZES), "colour": tuple(shapes.COLOURS), "position": shapes.POSITIONS
}  # fmt: skip
OF_SCENES = {"background": tuple(shapes.BACKGROUNDS), "pattern": shapes.PATTERNS}
NOTHING = "nothing"  # of an object that isn't there
# Question and number of the object (there are up to four), for every query but the last two, left to the contrast.
QUERIES: tuple[tuple[str, int], ...] = (
    *((question, 0) for question in OF_SCENES),
    *((question, place) for place in range(4) for question in (*OF_OBJECTS, "shape", "size", "colour")),
)


class NameObjects(nn.Module):
    """What the loop trains: ViT and Q-Former of a tokenizer, and linear layers that name what they see.

    Shapes: B pictures, R objects in all of them together, L tokens of the ViT, E its width, N queries, C their width.
    """

    def __init__(self, tok: SeedTokenizer) -> None:
        super().__init__()
        config = tok.config
        self.vit, self.vision_norm, self.qformer = tok.vit, tok.vision_norm, tok.qformer
        self._side = config.image_size // config.patch_size  # patches
        answers = OF_SCENES | {question: (*words, NOTHING) for question, words in OF_OBJECTS.items()}
        self._answers = {question: {word: at for at, word in enumerate(words)} for question, words in answers.items()}
        self.of_patches = nn.ModuleDict({name: nn.Linear(config.vit_dim, len(answers[name])) for name in OF_OBJECTS})
        self.of_queries = nn.ModuleDict({name: nn.Linear(config.qformer_dim, len(answers[name])) for name in answers})

    def see(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features [B, L, E] and causal embeddings [B, N, C] of the pictures."""
        features_BLE = self.vision_norm(self.vit(batch["pixels"]))
        return features_BLE, self.qformer(features_BLE)

    def answers(self, batch: Batch, features_BLE: Tensor, causal_BNC: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """{question: (logits [R, answers], right answers [R])}: of patches, and "query ..." of queries."""
        pictures = scenes(batch)
        things = [(row, item) for row, scene in enumerate(pictures) for item in scene.objects]
        rows, tokens = torch.tensor([(row, 1 + self._patch_of(item)) for row, item in things]).T
        centres_RE = features_BLE[rows, tokens]
        found = {}
        for question, layer in self.of_patches.items():
            right = torch.tensor([self._answers[question][getattr(item, question)] for _, item in things])
            found[question] = layer(centres_RE).float(), right
        for question, layer in self.of_queries.items():
            asked = [at for at, query in enumerate(QUERIES) if query[0] == question]
            right = torch.tensor(
                [[self._answers[question][answer(scene, *QUERIES[at])] for at in asked] for scene in pictures]
            )
            found[f"query {question}"] = layer(causal_BNC[:, asked]).float().flatten(0, 1), right.flatten()
        return found

    def _patch_of(self, item: shapes.Object) -> int:
        """The patch in which its centre lies; coordinates are 64ths of the picture's side."""
        row, column = (place * self._side // shapes.SIDE for place in (item.y, item.x))
        return row * self._side + column

    def loss(self, batch: Batch, features_BLE: Tensor, causal_BNC: Tensor) -> Tensor:
        """The sum [] of the cross-entropies of the questions."""
        answers = self.answers(batch, features_BLE, causal_BNC)
        return torch.stack([F.cross_entropy(*pair) for pair in answers.values()]).sum()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of a batch {"pixels", "keys", ...}."""
        return {"loss": self.loss(batch, *self.see(batch))}

    @torch.no_grad()
    def validate(self, batches: Batches) -> dict[str, float]:
        """The share of right answers to each question."""
        hits: dict[str, list[Tensor]] = {}
        for batch in batches:
            for question, (given, right) in self.answers(batch, *self.see(batch)).items():
                hits.setdefault(question, []).append(given.argmax(dim=1) == right)
        return {question: torch.cat(found).double().mean().item() for question, found in hits.items()}


class NameAndCompare(nn.Module):
    """What the loop trains next: the same, and the contrast of stage 1, which alone would undo it."""

    def __init__(self, names: NameObjects, model: Stage1Model, captions: CaptionTokenizer) -> None:
        super().__init__()
        self.names = names
        self.contrast = Stage1(model, captions, label_smoothing=0.0, dropout=0.0, train_vision=True)
        self._captions = captions

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of a batch {"pixels", "keys", "captions"}, and its two parts."""
        features_BLE, causal_BNC = self.names.see(batch)
        names = self.names.loss(batch, features_BLE, causal_BNC)
        ids, mask = self._captions(batch["captions"])
        contrast = self.contrast.model.loss_of_causal(causal_BNC, ids, mask, label_smoothing=0.0)
        return {"loss": names + contrast, "names": names.detach(), "contrast": contrast.detach()}

    def validate(self, batches: Batches) -> dict[str, float]:
        """Of both."""
        return self.contrast.validate(batches) | self.names.validate(batches)


def answer(scene: shapes.Scene, question: str, place: int) -> str:
    """The right answer about a scene, or about its object with this number, by rows of the grid and from the left."""
    if question in OF_SCENES:
        return str(getattr(scene, question))
    things = sorted(scene.objects, key=lambda item: shapes.POSITIONS.index(item.position))
    return str(getattr(things[place], question)) if place < len(things) else NOTHING


def scenes(batch: Batch) -> list[shapes.Scene]:
    """What its pictures show, by their keys."""
    return [ShapesSample.of_key(key).scene for key in batch["keys"]]


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
    # What a layer adds is smaller, so that the residual stream keeps its size and queries stay different.
    for block in tok.vit.blocks:
        for out in (block.attn.proj, block.mlp.fc2):
            out.weight *= (2 * config.vit_depth) ** -0.5
    for name, weight in tok.qformer.named_parameters():
        if name.endswith((".out.weight", ".down.weight")):
            weight *= (2 * config.qformer_depth) ** -0.5
    side, quarter = config.image_size // config.patch_size, config.vit_dim // 4
    angles = torch.arange(side)[:, None] * 100 ** (-torch.arange(quarter) / quarter)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1) / 2  # [side, D / 2]
    grid = torch.cat([waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)], dim=2)
    tok.vit.position_embedding[0, 1:] = grid.flatten(0, 1)
    return tok


def pretrain(config: SeedConfig, runs: Path, pictures: tuple[int, int] = (204_800, 256_000)) -> None:
    """Train, or go on, and write the folder that stage 1 begins with.

    Args:
        config: of the model; pictures of 64ths need an image size that is a multiple of the patch size.
        runs: where the folder, checkpoints and logs go.
        pictures: to learn names alone from, and names and the contrast together. Other scenes than stage 1 sees.
    """
    tok = initial(config)
    names = NameObjects(tok)
    train(names, config, runs / NAMES, f"shapes:{pictures[0]},seed=2", batch_size=64, lr=1e-3)
    captions = WordTokenizer.of_captions(
        (shapes.caption(shapes.scene(2, index)) for index in range(20_000)), max_tokens=MAX_TOKENS
    )
    torch.manual_seed(SEED)
    model = Stage1Model(tok, captions.size, max_tokens=MAX_TOKENS)
    both = NameAndCompare(names, model, captions)
    train(both, config, runs / BOTH, f"shapes:{pictures[1]},family=8,seed=3", batch_size=128, lr=5e-4)
    save_contrast(runs / START, model.state_dict(), captions)
    tok.save_pretrained(runs / START)


def train(task: nn.Module, config: SeedConfig, run: Path, data: str, *, batch_size: int, lr: float) -> None:
    """Run the package's loop over one epoch of `data`, or go on with it; leaves the program where it is stopped."""
    common = {"image_size": config.image_size, "batch_size": batch_size, "seed": SEED, "workers": 1}
    batches, validation = open_pairs(data, **common), open_pairs(VALIDATION, split="val", **common)
    steps = len(batches.source) // batch_size
    recipe = Recipe(
        batch_size=batch_size, epoch_steps=steps, lr=lr, warmup_steps=min(200, steps - 1), seed=SEED, **COMMON
    )
    output = Run(run, save_every=SAVE_EVERY, validate_every=2 * SAVE_EVERY, resume=True)
    ranks = Ranks.join(torch.device("cpu"))
    done = Loop(task, batches, recipe, output, ranks, validation=validation, about={"data": data})()
    batches.close()
    validation.close()
    if not done:
        sys.exit(f"{run}: stopped, with a checkpoint; the same command goes on")


def main() -> int:
    """Pretrain as `make seed-tiny` does, and no more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=Path, default=Path("out/seed-tiny"), help="where the model and its runs are left"
    )
    runs = parser.parse_args().runs
    pretrain(SeedConfig.preset("seed-tiny"), runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
