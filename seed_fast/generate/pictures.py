"""Codes to pictures: a diffusion pipeline of diffusers renders the tokenizer's generation embeddings.

SEED-2 makes the image embedding that Stable unCLIP 2.1 reads; SEED-1 the text features of Stable Diffusion 1.4. Source:
official models/seed_llama_tokenizer.py and models/visual_tokenizer.py (branch v1).

Shapes: B pictures, N codes, T text features, G their width or that of an image embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from seed_fast._extras import require
from seed_fast._hub import PIPELINE, local_folder
from seed_fast._text import read_json_object
from seed_fast.model.tokenizer import SeedTokenizer

TOKENIZER_FOLDER = "image_tokenizer"  # inside a pipeline's folder: the image tokenizer that was aligned to it
SIDE_MULTIPLE = 8  # px; diffusers takes no other sides

_UNREAD = ("image_encoder/*", "feature_extractor/*", "safety_checker/*")  # parts that codes make unnecessary
_TEXT_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_IMAGE_PARTS = (*_TEXT_PARTS, "image_normalizer", "image_noising_scheduler")
_SETTINGS = {"scheduler": "scheduler_config.json", "image_noising_scheduler": "scheduler_config.json"}
_SETTINGS |= {"tokenizer": "tokenizer_config.json"}
_WITHOUT_WEIGHTS = tuple(_SETTINGS)
_SOURCE = {
    True: "Stable Diffusion 1.4 for SEED-1, on the hub CompVis/stable-diffusion-v1-4",
    False: "Stable unCLIP 2.1 for SEED-2, on the hub stabilityai/stable-diffusion-2-1-unclip",
}


@dataclass(frozen=True)
class Rendering:
    """How pictures are denoised. None stands for the official value, which depends on the kind of tokenizer.

    Args:
        steps: denoising steps. Official: 50 for SEED-1, 20 for SEED-2.
        guidance: scale of classifier-free guidance; 1 turns it off. Official: 7.5 for SEED-1, 10 for SEED-2, and 5 for
            SEED-2 with negative codes.
        size: side of the pictures in px, a multiple of 8. Default: that of the pipeline.

    Raises:
        ValueError: a value is out of range.
    """

    steps: int | None = None
    guidance: float | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"rendering: steps must be at least 1, got {self.steps}")
        if self.guidance is not None and not 1 <= self.guidance < float("inf"):
            raise ValueError(f"rendering: guidance must be at least 1 and finite, got {self.guidance}")
        if self.size is not None and (self.size < SIDE_MULTIPLE or self.size % SIDE_MULTIPLE):
            raise ValueError(f"rendering: size must be a multiple of {SIDE_MULTIPLE} px, got {self.size}")

    def resolved(self, reads_text: bool, *, negative: bool = False) -> Rendering:
        """Return the same with official values in place of None (but for the size).

        Args:
            reads_text: True for SEED-1, False for SEED-2.
            negative: True if guidance points away from negative codes.
        """
        guidance = 7.5 if reads_text else 5.0 if negative else 10.0
        return Rendering(
            self.steps or (50 if reads_text else 20),
            guidance if self.guidance is None else self.guidance,
            self.size,
        )


def open_pipeline(
    folder: str | Path,
    tok: SeedTokenizer,
    *,
    dtype: torch.dtype | None = None,
    vae_slicing: bool = False,
    cpu_offload: bool = False,
) -> Any:
    """Load the diffusers pipeline that reads what `tok.decode` makes.

    Args:
        folder: a Stable unCLIP (SEED-2) or a Stable Diffusion (SEED-1), as diffusers saves them; or its hub id. The
            image encoder of Stable unCLIP and the safety checker are neither needed nor loaded.
        tok: the tokenizer, whose device the pipeline gets.
        dtype: float32, bfloat16 or float16; default: the tokenizer's.
        vae_slicing: turn latents into pixels one picture at a time: less memory for large batches.
        cpu_offload: keep each part of the pipeline in the computer's memory until the GPU needs it.

    Returns:
        A `NegativeUnCLIPPipeline` (a `StableUnCLIPImg2ImgPipeline`), or a `StableDiffusionPipeline`.

    Raises:
        ImportError: diffusers (or, for `cpu_offload`, accelerate) isn't installed; the message has the line that
            installs it.
        OSError: the folder isn't there, or lacks files of a pipeline, or one of them is damaged, or the hub has none of
            this name. The message names the files and says where they come from.
        ValueError: the pipeline reads embeddings of another kind, number or width; or `cpu_offload` without a GPU.
    """
    require("diffusers")
    if cpu_offload:
        require("accelerate")
        if tok.device.type == "cpu":
            raise ValueError(
                "open_pipeline: cpu_offload must have a GPU to load parts onto, got a tokenizer on the CPU"
            )
    reads_text = tok.config.generates_text
    parts = _TEXT_PARTS if reads_text else _IMAGE_PARTS
    folder = local_folder(folder, PIPELINE, without=_UNREAD, or_else=f" ({_needs(parts, reads_text)})")

    # What is small and can be wrong is looked at before gigabytes are read.
    if (folder / "unet/config.json").is_file():
        _check_kind(folder, reads_text)
    lacking = _lacking(folder, parts)
    if lacking:
        raise FileNotFoundError(
            f"{folder}: must be a folder of a diffusers pipeline ({_needs(parts, reads_text)}), "
            f"got one without {', '.join(lacking)}"
        )
    _check_reads(folder, tok)

    with _quiet():
        kind, absent = _kind(reads_text)
        try:
            pipeline: Any = kind.from_pretrained(
                str(folder), torch_dtype=dtype or tok.dtype, local_files_only=True, use_safetensors=True, **absent
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, _safetensor_error()) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise OSError(f"{folder}: can't be loaded as a {kind.__name__}: {reason}") from error
        pipeline.set_progress_bar_config(disable=True)
        if vae_slicing:
            pipeline.vae.enable_slicing()
        if cpu_offload:
            pipeline.enable_model_cpu_offload(device=tok.device)
        else:
            pipeline.to(tok.device)
    return pipeline


def render_pictures(
    pipeline: Any,
    tok: SeedTokenizer,
    codes: Any,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    size: int | None = None,
    seed: int = 0,
    negative: Sequence[int] | Tensor | None = None,
) -> list[Image.Image]:
    """Render a picture for each row of codes.

    Args:
        pipeline: the result of `open_pipeline`.
        tok: the tokenizer of the codes.
        codes: [B, N] integers, of any B.
        steps: see `Rendering`.
        guidance: see `Rendering`.
        size: see `Rendering`.
        seed: seed of the initial noise; row b uses `seed + b`, so that a picture doesn't depend on the other rows.
        negative: codes [N] that guidance points away from, such as a sample that a language model has drawn without a
            caption. Default: the text features of "" (SEED-1), zeros (SEED-2).

    Returns:
        B pictures.

    Raises:
        TypeError, ValueError: the codes are no codes of this tokenizer, see `SeedTokenizer.decode`.

    Examples:
        pipeline = open_pipeline("stable-diffusion-2-1-unclip", tok)
        render_pictures(pipeline, tok, tok.encode(["a.jpg"]))[0].save("a-again.png")
    """
    embeddings = tok.decode(codes)
    seeds = range(seed, seed + len(embeddings))
    unwanted = None if negative is None else tok.decode(torch.as_tensor(negative)[None])[0]
    return render_embeddings(pipeline, embeddings, seeds, Rendering(steps, guidance, size), negative=unwanted)


def render_embeddings(
    pipeline: Any,
    embeddings: Tensor,
    seeds: Sequence[int],
    rendering: Rendering | None = None,
    *,
    negative: Tensor | None = None,
) -> list[Image.Image]:
    """Render a picture for each row of generation embeddings.

    Args:
        pipeline: the result of `open_pipeline`.
        embeddings: text features [B, T, G] (SEED-1), or image embeddings [B, G] (SEED-2); see `SeedTokenizer.decode`.
        seeds: B seeds of the initial noise, and for SEED-2 of the noise that the pipeline puts on embeddings even at
            level 0. A picture depends on its own row and seed, not on the others: but for rounding, which depends on
            the size of the batch.
        rendering: steps, guidance and size; default: the official ones.
        negative: the embedding that guidance points away from, [T, G] or [G].

    Returns:
        B pictures.

    Raises:
        ValueError: `seeds` isn't as long as `embeddings`.
    """
    if len(seeds) != len(embeddings):
        raise ValueError(f"render_embeddings: seeds must be one for each of {len(embeddings)} rows, got {len(seeds)}")
    if not len(embeddings):
        return []
    reads_text = embeddings.ndim == 3
    rendering = (rendering or Rendering()).resolved(reads_text, negative=negative is not None)
    inputs: dict[str, Any]
    if reads_text:
        inputs = {"prompt_embeds": embeddings}
        if negative is not None:
            inputs["negative_prompt_embeds"] = negative.expand_as(embeddings)
    else:
        pairs = embeddings if negative is None else torch.stack([embeddings, negative.expand_as(embeddings)], 1)
        inputs = {"prompt": [""] * len(embeddings), "image_embeds": pairs, "noise_level": 0}
    if rendering.size is not None:
        inputs |= {"height": rendering.size, "width": rendering.size}

    # Generators on the CPU, so that the noise is the same on every device.
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipeline(
        **inputs, num_inference_steps=rendering.steps, guidance_scale=rendering.guidance, generator=noise
    ).images


def _kind(reads_text: bool) -> tuple[Any, dict[str, None]]:
    """Return the class of the pipeline, and the parts that it is to be loaded without."""
    if reads_text:
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline, {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    from seed_fast.generate.unclip import NegativeUnCLIPPipeline

    return NegativeUnCLIPPipeline, {"feature_extractor": None, "image_encoder": None}


def _needs(parts: Sequence[str], reads_text: bool) -> str:
    return f"model_index.json and the folders {', '.join(parts)}: {_SOURCE[reads_text]}"


def _lacking(folder: Path, parts: Sequence[str]) -> list[str]:
    """Return the files that the folder must have and hasn't."""
    if not (folder / "model_index.json").is_file():
        return ["model_index.json"]
    lacking = []
    for part in parts:
        settings = f"{part}/{_SETTINGS.get(part, 'config.json')}"
        if not (folder / settings).is_file():
            lacking.append(settings)
        if part not in _WITHOUT_WEIGHTS and not any((folder / part).glob("*.safetensors")):
            weights = "model" if part == "text_encoder" else "diffusion_pytorch_model"
            lacking.append(f"{part}/{weights}.safetensors")
    return lacking


def _check_kind(folder: Path, reads_text: bool) -> None:
    """Check that the pipeline in a folder reads text features, or image embeddings; errors as `_check_reads`."""
    reads_image = _settings(folder, "unet").get("class_embed_type") is not None
    if reads_image == reads_text:
        kinds = ("text features", "image embeddings")
        raise ValueError(
            f"{folder}: must read {kinds[not reads_text]}, which the tokenizer makes, "
            f"got a pipeline that reads {kinds[reads_image]}"
        )


def _check_reads(folder: Path, tok: SeedTokenizer) -> None:
    """Check that the pipeline in a folder reads embeddings of the number and width that the tokenizer makes.

    Raises:
        OSError: a file of settings is damaged.
        ValueError: it doesn't.
    """
    unet = _settings(folder, "unet")
    if tok.config.generates_text:
        width = unet.get("cross_attention_dim")
        places = _settings(folder, "text_encoder").get("max_position_embeddings", 0)
        if places < tok.config.generation_tokens:  # it encodes "" at that length
            raise ValueError(f"{folder}: must read {tok.config.generation_tokens} text features, got {places} at most")
    else:
        width = (unet.get("projection_class_embeddings_input_dim") or 0) // 2  # the other half is the noise level
    if width != tok.config.generation_dim:
        raise ValueError(f"{folder}: must read embeddings of width {tok.config.generation_dim}, got {width}")


def _settings(folder: Path, part: str) -> dict[str, Any]:
    try:
        return read_json_object(folder / part / "config.json")
    except ValueError as error:
        raise OSError(str(error)) from None


def _safetensor_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep remarks of transformers and diffusers about parts that aren't used off the terminal."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        from diffusers.utils import logging as of_diffusers

        bars, shown = of_diffusers.is_progress_bar_enabled(), of_diffusers.get_verbosity()
        of_diffusers.set_verbosity_error()
        of_diffusers.disable_progress_bar()
        try:
            with warnings.catch_warnings():
                # Its new name, `dtype`, is unknown to older versions.
                warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
                yield
        finally:
            of_diffusers.set_verbosity(shown)
            if bars:
                of_diffusers.enable_progress_bar()
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
