"""Codes to pictures: the tokenizer's generation embeddings, drawn by a diffusion model of diffusers.

SEED-2 makes the image embedding that Stable unCLIP 2.1 reads; SEED-1 the text features of Stable Diffusion 1.4. Source:
official models/seed_llama_tokenizer.py and models/visual_tokenizer.py (branch v1).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from seed_fast._hub import PIPELINE, local_folder
from seed_fast.model.tokenizer import SeedTokenizer

INSTALL = "pip install 'seed_fast[draw]'"


def open_painter(folder: str | Path, tok: SeedTokenizer) -> Any:
    """The diffusers pipeline that reads what `tok.decode` makes.

    Args:
        folder: of a Stable unCLIP (SEED-2) or a Stable Diffusion (SEED-1), as diffusers saves them; or its hub id.
        tok: its device and dtype are the pipeline's too.

    Raises:
        ImportError: diffusers isn't installed; the message has the install line.
        FileNotFoundError, OSError: the folder isn't there, or the hub has none.
        ValueError: the pipeline reads embeddings of another width.
    """
    if importlib.util.find_spec("diffusers") is None:
        raise ImportError(f"pictures need diffusers, which isn't installed: {INSTALL}")
    folder = local_folder(folder, PIPELINE)
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder}: must be a folder of a diffusers pipeline, got one without model_index.json")
    from diffusers import StableDiffusionPipeline, StableUnCLIPImg2ImgPipeline

    kind = StableDiffusionPipeline if tok.config.generates_text else StableUnCLIPImg2ImgPipeline
    without = {"safety_checker": None} if tok.config.generates_text else {}
    painter = kind.from_pretrained(str(folder), torch_dtype=tok.dtype, local_files_only=True, **without)
    config = painter.unet.config
    if tok.config.generates_text:
        width = config.cross_attention_dim
    else:
        width = config.projection_class_embeddings_input_dim // 2  # the other half says how noisy the embedding is
    if width != tok.config.generation_dim:
        raise ValueError(f"{folder}: must read embeddings of width {tok.config.generation_dim}, got {width}")
    painter.set_progress_bar_config(disable=True)
    return painter.to(tok.device)


def paint(painter: Any, tok: SeedTokenizer, codes: Tensor, *, steps: int = 20, seed: int = 0) -> list[Image.Image]:
    """Draw a picture for each row of codes.

    Args:
        painter: of `open_painter`.
        tok: the tokenizer of the codes.
        codes: [B, N] integers.
        steps: of denoising.
        seed: of the noise; a picture depends on its own place in the batch, and not on the others.

    Raises:
        TypeError, ValueError: as `SeedTokenizer.decode`.
    """
    embeddings = tok.decode(codes)
    noise = [torch.Generator().manual_seed(seed + row) for row in range(len(codes))]
    if tok.config.generates_text:
        given = {"prompt_embeds": embeddings}
    else:
        given = {"prompt": [""] * len(codes), "image_embeds": embeddings}
    return painter(**given, num_inference_steps=steps, generator=noise).images
