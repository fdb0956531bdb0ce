"""Codes to pictures: a diffusion pipeline of diffusers renders the tokenizer's generation embeddings.

SEED-2 makes the image embedding that Stable unCLIP 2.1 reads; SEED-1 the text features of Stable Diffusion 1.4. Source:
official models/seed_llama_tokenizer.py and models/visual_tokenizer.py (branch v1).
"""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from seed_fast._files import write_beside
from seed_fast._hub import PIPELINE, local_folder
from seed_fast.model.tokenizer import SeedTokenizer

INSTALL = "pip install 'seed_fast[draw]'"


def open_pipeline(folder: str | Path, tok: SeedTokenizer) -> Any:
    """Load the diffusers pipeline that reads what `tok.decode` makes.

    Args:
        folder: a Stable unCLIP (SEED-2) or a Stable Diffusion (SEED-1), as diffusers saves them; or its hub id.
        tok: the tokenizer whose device and dtype the pipeline gets.

    Returns:
        A `StableUnCLIPImg2ImgPipeline` or a `StableDiffusionPipeline`.

    Raises:
        ImportError: diffusers isn't installed; the message has the line that installs it.
        OSError: the folder isn't there or holds no pipeline, or the hub has none of this name.
        ValueError: the pipeline reads embeddings of another width.
    """
    if importlib.util.find_spec("diffusers") is None:
        raise ImportError(f"pictures need diffusers, which isn't installed: {INSTALL}")
    folder = local_folder(folder, PIPELINE)
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder}: must be a folder of a diffusers pipeline, got one without model_index.json")
    from diffusers import StableDiffusionPipeline, StableUnCLIPImg2ImgPipeline

    # SEED-1 replaces the text encoder's output, SEED-2 the image encoder's.
    reads_text = tok.config.generates_text
    kind = StableDiffusionPipeline if reads_text else StableUnCLIPImg2ImgPipeline
    without = {"safety_checker": None} if reads_text else {}
    pipeline: Any = kind.from_pretrained(str(folder), torch_dtype=tok.dtype, local_files_only=True, **without)

    config = pipeline.unet.config
    if reads_text:
        width = config.cross_attention_dim
    else:
        width = config.projection_class_embeddings_input_dim // 2  # the other half says how noisy the embedding is
    if width != tok.config.generation_dim:
        raise ValueError(f"{folder}: must read embeddings of width {tok.config.generation_dim}, got {width}")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(tok.device)


def render_pictures(
    pipeline: Any, tok: SeedTokenizer, codes: Tensor, *, steps: int = 20, seed: int = 0
) -> list[Image.Image]:
    """Render a picture for each row of codes.

    Args:
        pipeline: the result of `open_pipeline`.
        tok: the tokenizer of the codes.
        codes: [B, N] integers.
        steps: denoising steps.
        seed: seed of the initial noise; row b uses `seed + b`, so that a picture doesn't depend on the other rows.

    Returns:
        B pictures.

    Raises:
        TypeError, ValueError: the codes are no codes of this tokenizer, see `SeedTokenizer.decode`.

    Examples:
        pipeline = open_pipeline("stable-diffusion-2-1-unclip", tok)
        render_pictures(pipeline, tok, tok.encode(["a.jpg"]))[0].save("a-again.png")
    """
    embeddings = tok.decode(codes)
    noise = [torch.Generator().manual_seed(seed + row) for row in range(len(codes))]
    inputs: dict[str, Any]
    if tok.config.generates_text:
        inputs = {"prompt_embeds": embeddings}
    else:
        inputs = {"prompt": [""] * len(codes), "image_embeds": embeddings}
    return pipeline(**inputs, num_inference_steps=steps, generator=noise).images


class PictureFolder:
    """Renders codes and writes the pictures into a folder as 000000.png, 000001.png and so on.

    Args:
        folder: where to write; made with the first picture.
        pipeline: the result of `open_pipeline`.
        tok: the tokenizer of the codes.
        steps: denoising steps.
        seed: seed of the initial noise of the first picture; the others count up from it.
    """

    def __init__(self, folder: Path, pipeline: Any, tok: SeedTokenizer, *, steps: int = 20, seed: int = 0) -> None:
        self._folder, self._pipeline, self._tok = folder, pipeline, tok
        self._steps, self._seed = steps, seed
        self._count = 0

    def add(self, codes: Tensor) -> None:
        """Render a picture for each row of codes [B, N], and write each as a whole file or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        seed = self._seed + self._count
        for picture in render_pictures(self._pipeline, self._tok, codes, steps=self._steps, seed=seed):
            content = io.BytesIO()
            picture.save(content, format="PNG")
            write_beside(self._folder / f"{self._count:06d}.png", content.getvalue())
            self._count += 1
