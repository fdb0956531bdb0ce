"""Train shapes-sd, a small Stable Diffusion of `shapes`: what `make shapes-sd` runs.

An autoencoder, a text encoder and a UNet learn from nothing to draw captions of the generated world, out of diffusers'
and transformers' own parts. The result is a plain `StableDiffusionPipeline` folder in float16. Then the generator of
seed-tiny learns to turn codes into the frozen text features of the pictures' captions, by mean squared error, as SEED-1
is aligned to Stable Diffusion v1.4: the pipeline then draws codes, though its UNet never saw any, and the codes are
seed-tiny's own. Nothing is downloaded. Run it again after an interruption: it goes on.

`--quick` goes through all of it in minutes, learns little, and leaves everything in its run folder.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seed_fast import SeedTokenizer
from seed_fast._files import replace_folder_files, replacing, write_all
from seed_fast.data import shapes
from seed_fast.generate.pictures import TOKENIZER_FOLDER

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "shapes-sd"
LARGEST = 8_000_000  # bytes of the pipeline that the repository takes

SEED = 7  # of scenes; seed-tiny and seed-opt-tiny were trained on others
SIDE, LATENT_CHANNELS, DOWN = 64, 8, 4
CELLS = 8  # side of the grid of places that the text encoder learns to name
TOKENS, TEXT_WIDTH = 48, 128
SAVE_EVERY = 100  # steps


class Effort(NamedTuple):
    """Number of training pictures, and steps of each stage."""

    pictures: int
    text: int
    autoencoder: int
    diffusion: int
    alignment: int


WHOLE = Effort(pictures=32_768, text=1500, autoencoder=3000, diffusion=1600, alignment=1900)
QUICK = Effort(pictures=512, text=20, autoencoder=20, diffusion=20, alignment=20)


def build_autoencoder() -> Any:
    """Return an AutoencoderTiny that turns [B, 3, 64, 64] in -1..1 into latents [B, 8, 16, 16].

    In as much time, an AutoencoderKL with 8 x 8 latents lost the colours of objects.
    """
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32), num_encoder_blocks=(0, 1, 1),
        decoder_block_out_channels=(32, 32, 32), num_decoder_blocks=(1, 1, 0), latent_channels=LATENT_CHANNELS,
    )  # fmt: skip


def canonical_caption(scene: shapes.Scene) -> str:
    """Return the one caption that stands for a scene: its objects in reading order, each with its position.

    The mean over captions in several orders would be the best that a squared error can find, and describe nothing.
    """
    objects = sorted(scene.objects, key=lambda item: shapes.POSITIONS.index(item.position))
    return shapes.caption(replace(scene, objects=tuple(objects), style=0))


def build_words(captions: Iterable[str]) -> Any:
    """Return a CLIPTokenizer that has a token for each word of the captions, and letters for all other words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    end = "</w>"
    # Merging pairs until none is left makes each word one token.
    learner = Tokenizer(models.BPE(end_of_word_suffix=end))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    learner.train_from_iterator(
        captions, trainers.BpeTrainer(vocab_size=4096, end_of_word_suffix=end, show_progress=False, min_frequency=1)
    )
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    letters = [letter + suffix for suffix in ("", end) for letter in "abcdefghijklmnopqrstuvwxyz0123456789,."]
    names = [*letters, *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def build_text_encoder(tokenizer: Any) -> Any:
    """Return a CLIPTextModel of two layers: ids [B, 48] to features [B, 48, 128]."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=TOKENS, projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPTextModel(config)


def build_unet() -> Any:
    """Return a UNet of noisy latents [B, 8, 16, 16] that reads text features where they are 8 x 8."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIDE // DOWN, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 96), attention_head_dim=4, norm_num_groups=16, cross_attention_dim=TEXT_WIDTH,
    )  # fmt: skip


def build_scheduler() -> Any:
    """Return a DDIM scheduler whose last step is pure noise: a picture is then drawn from its text alone at first."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True,
        steps_offset=1,
    )  # fmt: skip


def load_pictures(path: Path, count: int) -> np.ndarray:
    """Return the training pictures, uint8 [count, 64, 64, 3], from `path` or drawn and written there."""
    if path.exists():
        pictures = np.load(path, mmap_mode="r")
        if len(pictures) == count:
            return pictures
    print(f"draw {count} pictures", flush=True)
    pictures = np.stack([shapes.render(shapes.scene(SEED, index), SIDE) for index in range(count)])
    with replacing(path) as file:
        np.save(file, pictures)
    return pictures


def as_pixels(pictures: np.ndarray) -> Tensor:
    """Turn pictures, uint8 [B, S, S, 3], into pixels [B, 3, S, S] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def fit(
    path: Path,
    modules: nn.ModuleDict,
    loss_of: Callable[[torch.Generator, int], Tensor],
    steps: int,
    *,
    lr: float,
    ema: float = 0.995,
) -> nn.ModuleDict:
    """Train modules for some steps, or go on from the checkpoint at `path`, and load the mean of their weights.

    A batch depends on the number of its step alone, so an interrupted run ends with the same weights as a whole one.

    Args:
        path: checkpoint, replaced every `SAVE_EVERY` steps.
        modules: what is trained; a parameter that needs no gradient stays as it is.
        loss_of: loss of the batch that a generator and the number of the step determine.
        steps: number of steps; the learning rate falls to a fiftieth along a half cosine.
        lr: highest learning rate of AdamW.
        ema: weight of the past in the moving mean of the weights.

    Returns:
        `modules`, with the moving mean of their weights.
    """
    trained = [parameter for parameter in modules.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    mean = [parameter.detach().clone() for parameter in trained]
    first = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        mean, first = [values.detach() for values in state["mean"]], state["step"]
    losses: list[float] = []
    begin = time.monotonic()
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 100) * (0.51 + 0.49 * float(np.cos(np.pi * step / steps)))
        loss = loss_of(torch.Generator().manual_seed(1_000_003 * SEED + step), step)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # The mean follows closely at first, when the weights still move far.
        with torch.no_grad():
            torch._foreach_lerp_(mean, trained, 1 - min(ema, (step + 1) / (step + 10)))
        losses.append(loss.item())
        done = step + 1
        if done % 25 == 0 or done == steps:
            pace = (time.monotonic() - begin) / (done - first)
            print(f"{path.stem} {done}/{steps} loss {np.mean(losses[-25:]):.4f} {pace:.3f} s/step", flush=True)
        if done % SAVE_EVERY == 0 or done == steps:
            save(
                path, {"modules": modules.state_dict(), "optimizer": optimizer.state_dict(), "mean": mean, "step": done}
            )
    with torch.no_grad():
        torch._foreach_copy_(trained, mean)
    return modules.eval().requires_grad_(False)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill leaves the one before."""
    content = io.BytesIO()
    torch.save(state, content)
    with replacing(path) as file:
        write_all(file, content.getbuffer())


def train_autoencoder(runs: Path, pictures: np.ndarray, steps: int) -> Any:
    """Return the autoencoder, trained by the absolute and squared error of its reconstruction."""
    torch.manual_seed(SEED)
    modules = nn.ModuleDict({"vae": build_autoencoder()})
    vae: Any = modules["vae"]

    def loss_of(generator: torch.Generator, step: int) -> Tensor:
        places = torch.randint(len(pictures), (16,), generator=generator)
        pixels = as_pixels(pictures[places.numpy()])
        # What the autoencoder sees is local: four crops cost as much as one picture and teach more.
        top, left = torch.randint(SIDE // 2, (2,), generator=generator).tolist()
        pixels = pixels[:, :, top : top + SIDE // 2, left : left + SIDE // 2].contiguous()
        latents = vae.encode(pixels).latents
        # A little noise on the latents keeps the decoder from answering to differences that a UNet can't draw.
        pictured = vae.decode(latents + 0.05 * torch.randn(latents.shape, generator=generator)).sample
        error = pictured - pixels
        return 0.5 * error.abs().mean() + 4 * error.square().mean() + 1e-4 * latents.square().mean()

    return fit(runs / "autoencoder.pt", modules, loss_of, steps, lr=2e-3)["vae"]


class NameCells(nn.Module):
    """Objective of the text encoder: from its features, name what a scene shows in each cell of an 8 x 8 grid.

    One cross-attention finds in the text what lies at a place, as each of the UNet's does. It is dropped afterwards, as
    CLIP's image encoder is in Stable Diffusion, which trains no text encoder either.
    """

    ANSWERS: ClassVar = {
        "shape": shapes.SHAPES, "colour": tuple(shapes.COLOURS), "size": tuple(shapes.SIZES),
        "background": tuple(shapes.BACKGROUNDS), "pattern": shapes.PATTERNS,
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(CELLS * CELLS, TEXT_WIDTH))
        self.attention = nn.MultiheadAttention(TEXT_WIDTH, 4, batch_first=True)
        # One answer more: nothing lies there.
        self.answers = nn.ModuleDict({name: nn.Linear(TEXT_WIDTH, len(all) + 1) for name, all in self.ANSWERS.items()})

    def forward(self, features_BTG: Tensor, labels_BLQ: Tensor) -> Tensor:
        """Return the sum of the mean cross-entropies [] of features [B, 48, 128] against labels [B, 64, 5]."""
        queries = self.queries.expand(len(features_BTG), -1, -1)
        read, _ = self.attention(queries, features_BTG, features_BTG, need_weights=False)
        losses = [
            F.cross_entropy(answer(read).flatten(0, 1), labels_BLQ[..., at].flatten().long())
            for at, answer in enumerate(self.answers.values())
        ]
        return torch.stack(losses).sum()


def cell_labels(scene: shapes.Scene) -> np.ndarray:
    """Return the numbers of the right answers of `NameCells`, uint8 [64, 5]."""
    labels = np.zeros((CELLS, CELLS, len(NameCells.ANSWERS)), dtype=np.uint8)
    nothing = [len(words) for words in NameCells.ANSWERS.values()]
    labels[:] = nothing
    labels[..., 3] = NameCells.ANSWERS["background"].index(scene.background)
    labels[..., 4] = NameCells.ANSWERS["pattern"].index(scene.pattern)
    centres = (np.arange(CELLS) * 2 + 1) * SIDE // (2 * CELLS)
    for item in scene.objects:
        # An object fills the cells whose centres its circle covers, and always the one of its own centre.
        near = (centres[None] - item.x) ** 2 + (centres[:, None] - item.y) ** 2 <= (item.radius / 2) ** 2
        near[item.y * CELLS // SIDE, item.x * CELLS // SIDE] = True
        labels[near, :3] = [NameCells.ANSWERS[name].index(getattr(item, name)) for name in ("shape", "colour", "size")]
    return labels.reshape(CELLS * CELLS, -1)


class Captions:
    """Token ids of the training captions: the canonical one of each picture, and the picture's own."""

    def __init__(self, tokenizer: Any, scenes: Sequence[shapes.Scene]) -> None:
        self.canonical = token_ids(tokenizer, [canonical_caption(scene) for scene in scenes])
        self.own = token_ids(tokenizer, [shapes.caption(scene) for scene in scenes])
        self.empty = token_ids(tokenizer, [""])

    def draw(self, places: Tensor, generator: torch.Generator, *, dropped: float = 0.0) -> Tensor:
        """Return ids [B, 48]: a fifth are own captions, the share `dropped` is empty for the sake of guidance."""
        kind = torch.rand(len(places), 1, generator=generator)
        ids = torch.where(kind < 0.2, self.own[places], self.canonical[places])
        return torch.where(kind >= 1 - dropped, self.empty, ids)


def token_ids(tokenizer: Any, captions: list[str]) -> Tensor:
    """Return ids [B, 48], padded as the pipeline pads."""
    length = tokenizer.model_max_length
    ids: Tensor = tokenizer(
        captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def train_text_encoder(runs: Path, scenes: Sequence[shapes.Scene], captions: Captions, encoder: Any, steps: int) -> Any:
    """Return the text encoder, trained to say what lies where."""
    labels = torch.from_numpy(np.stack([cell_labels(scene) for scene in scenes]))
    torch.manual_seed(SEED)
    init_narrow(encoder)
    modules = nn.ModuleDict({"text_encoder": encoder, "names": NameCells()})

    def loss_of(generator: torch.Generator, step: int) -> Tensor:
        places = torch.randint(len(labels), (64,), generator=generator)
        features = modules["text_encoder"](captions.draw(places, generator)).last_hidden_state
        loss: Tensor = modules["names"](features, labels[places])
        return loss

    return fit(runs / "text_encoder.pt", modules, loss_of, steps, lr=1e-3)["text_encoder"]


@torch.no_grad()
def init_narrow(module: nn.Module) -> None:
    """Draw weights whose rows have about unit length: 0.02, the usual deviation, suits rows of 768 numbers."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.normal_(child.weight, std=child.in_features**-0.5)


def latents_of(runs: Path, vae: Any, pictures: np.ndarray) -> Tensor:
    """Return the latents [N, 8, 16, 16] of the training pictures, from the run folder or made and written there."""
    path = runs / "latents.npy"
    if not path.exists():
        print(f"encode {len(pictures)} pictures", flush=True)
        with torch.inference_mode():
            parts = [vae.encode(as_pixels(pictures[at : at + 128])).latents for at in range(0, len(pictures), 128)]
        with replacing(path) as file:
            np.save(file, torch.cat(parts).numpy())
    return torch.from_numpy(np.load(path))


def codes_of(runs: Path, pictures: np.ndarray) -> Tensor:
    """Return seed-tiny's codes [N, 32] of the training pictures, from the run folder or made and written there."""
    path = runs / "codes.npy"
    if not path.exists():
        print(f"tokenize {len(pictures)} pictures", flush=True)
        tok = SeedTokenizer.from_pretrained("seed-tiny").fast()
        parts = [tok.encode(list(np.array(pictures[at : at + 128]))) for at in range(0, len(pictures), 128)]
        with replacing(path) as file:
            np.save(file, torch.cat(parts).numpy())
    return torch.from_numpy(np.load(path))


def train_unet(runs: Path, latents: Tensor, captions: Captions, encoder: Any, steps: int) -> Any:
    """Return the UNet, trained to take noise from latents by the frozen text features; one caption in ten is empty."""
    torch.manual_seed(SEED)
    modules = nn.ModuleDict({"unet": build_unet()})
    scheduler = build_scheduler()
    last = scheduler.config.num_train_timesteps

    def loss_of(generator: torch.Generator, step: int) -> Tensor:
        places = torch.randint(len(latents), (32,), generator=generator)
        with torch.no_grad():
            features = encoder(captions.draw(places, generator, dropped=0.1)).last_hidden_state
        noise = torch.randn(latents[places].shape, generator=generator)
        # Noisy latents more often than clean ones: what the text decides is decided there.
        times = (last * torch.rand(len(places), generator=generator).sqrt()).long()
        noisy = scheduler.add_noise(latents[places], noise, times)
        velocity = scheduler.get_velocity(latents[places], noise, times)
        return F.mse_loss(modules["unet"](noisy, times, features).sample, velocity)

    return fit(runs / "unet.pt", modules, loss_of, steps, lr=1e-3)["unet"]


def tokenizer_to_align() -> SeedTokenizer:
    """Return seed-tiny with a generator and a head of text features in the place of its own, ready to be trained.

    The generator begins as the first blocks of seed-tiny's; the head is a Reverse Q-Former of new weights. All that
    codes depend on is seed-tiny's, and needs no gradient.
    """
    tiny = SeedTokenizer.from_pretrained("seed-tiny")
    config = replace(
        tiny.config, head="reverse_qformer", generation_tokens=TOKENS, generation_dim=TEXT_WIDTH,
        decoder_depth=2, reverse_depth=3,
    )  # fmt: skip
    torch.manual_seed(SEED)
    tok = SeedTokenizer(config)
    init_narrow(tok.head)
    # Queries of about unit length apart, so that each begins as another token.
    nn.init.normal_(tok.head.qformer.query_tokens)
    missing, _ = tok.load_state_dict(tiny.state_dict() | tok.head.state_dict(prefix="head."), strict=False)
    if missing:
        raise RuntimeError(f"seed-tiny: must hold all but the head, lacks {missing}")
    tok.requires_grad_(False)
    for part in (tok.generator, tok.head):
        part.requires_grad_(True)
    tok.trained = True
    return tok


def align(runs: Path, codes: Tensor, captions: Captions, encoder: Any, steps: int) -> SeedTokenizer:
    """Return the tokenizer whose generator turns codes into the text features of the canonical captions."""
    tok = tokenizer_to_align()
    parts = nn.ModuleDict({"generator": tok.generator, "head": tok.head})

    def loss_of(generator: torch.Generator, step: int) -> Tensor:
        places = torch.randint(len(codes), (64,), generator=generator)
        with torch.no_grad():
            features = encoder(captions.canonical[places]).last_hidden_state
        return F.mse_loss(tok.head(tok.generator(tok.quantizer(codes[places]))), features)

    fit(runs / "alignment.pt", parts, loss_of, steps, lr=1e-3)
    return tok


def write_pipeline(folder: Path, vae: Any, tokenizer: Any, encoder: Any, unet: Any, latents: Tensor) -> None:
    """Write a plain StableDiffusionPipeline in float16."""
    from diffusers import StableDiffusionPipeline

    vae.register_to_config(scaling_factor=1 / latents.std().item())
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=build_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    with replace_folder_files(folder) as staging:
        pipeline.to(torch.float16).save_pretrained(staging)


def main() -> int:
    """Train every part, or go on, and write the two folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("out/shapes-sd"), help="where data and checkpoints are left")
    parser.add_argument("--quick", action="store_true", help="a look in minutes; the committed folder stays as it is")
    options = parser.parse_args()
    effort = QUICK if options.quick else WHOLE
    runs = options.runs / "quick" if options.quick else options.runs
    folder = runs / FOLDER.name if options.quick else FOLDER
    runs.mkdir(parents=True, exist_ok=True)
    train(runs, folder, effort)
    size = sum(
        path.stat().st_size for path in folder.rglob("*") if path.is_file() and TOKENIZER_FOLDER not in path.parts
    )
    print(f"{folder}: {size / 1e6:.1f} MB, and {TOKENIZER_FOLDER} in it")
    if size > LARGEST:
        sys.exit(f"{folder}: must be at most {LARGEST / 1e6:.0f} MB to be committed, got {size / 1e6:.1f} MB")
    return 0


def train(runs: Path, folder: Path, effort: Effort) -> None:
    """Train what isn't trained yet, stage by stage, and write the pipeline and the tokenizer."""
    pictures = load_pictures(runs / "pictures.npy", effort.pictures)
    scenes = [shapes.scene(SEED, index) for index in range(effort.pictures)]
    tokenizer = build_words(caption(scene) for scene in scenes for caption in (canonical_caption, shapes.caption))
    captions = Captions(tokenizer, scenes)
    encoder = train_text_encoder(runs, scenes, captions, build_text_encoder(tokenizer), effort.text)
    vae = train_autoencoder(runs, pictures, effort.autoencoder)
    latents = latents_of(runs, vae, pictures)
    unet = train_unet(runs, latents / latents.std(), captions, encoder, effort.diffusion)
    tok = align(runs, codes_of(runs, pictures), captions, encoder, effort.alignment)
    write_pipeline(folder, vae, tokenizer, encoder, unet, latents)
    tok.to(torch.float16).save_pretrained(folder / TOKENIZER_FOLDER)


if __name__ == "__main__":
    sys.exit(main())
