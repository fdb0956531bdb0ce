"""Codes of resized images, and the message for an image that has none."""

from __future__ import annotations

import numpy as np
import torch

from seed_fast.data.image_processor import ImageProcessor
from seed_fast.model.encoder import ImageEncoder, codes_of


@torch.inference_mode()
def encode_resized(tok: ImageEncoder, processor: ImageProcessor, pixels: np.ndarray) -> np.ndarray:
    """Turn resized images, uint8 [B, S, S, 3], into codes [B, N] int64; -1 for all codes of an image that has none."""
    normalised = processor.normalize(torch.from_numpy(pixels).to(tok.device))
    return codes_of(tok, tok.query_embeddings(tok.image_features(normalised))).cpu().numpy()


def no_codes(name: str, tok: ImageEncoder) -> str:
    """Return the line that names an image without codes and says why: `encode_resized` gave -1 for it."""
    return f"{name}: its embedding in {tok.dtype} is not finite, so it has no codes"
