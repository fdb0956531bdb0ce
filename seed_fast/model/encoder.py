"""`ImageEncoder`: the base class of `SeedTokenizer` and `FastTokenizer`; it turns images into checked codes.

Shapes: B images, S image side in px, L ViT tokens, E ViT width, N codes, C Q-Former width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seed_fast.model.config import SeedConfig


def codes_of(tok: ImageEncoder, causal_BNC: Tensor) -> Tensor:
    """Look up the codes of causal embeddings: an image with a NaN or an infinity has none. The one place of this rule.

    Args:
        tok: the tokenizer, or its inference plan, that made the embeddings.
        causal_BNC: causal embeddings [B, N, C].

    Returns:
        Codes [B, N] int64; -1 for all codes of an image that has a value which isn't finite.
    """
    # Checked before the lookup, whose tanh would turn an infinite embedding into an ordinary code.
    finite_B1 = causal_BNC.isfinite().flatten(1).all(dim=1, keepdim=True)
    codes = tok.lookup(causal_BNC)
    return codes.masked_fill(~(finite_B1 & (codes >= 0).all(dim=1, keepdim=True)), -1)


class ImageEncoder(ABC):
    """Encodes images by three stages that a subclass provides: `image_features`, `query_embeddings` and `lookup`."""

    config: SeedConfig

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device on which the stages run."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Dtype in which the stages compute."""

    @abstractmethod
    def image_features(self, pixels: Tensor) -> Tensor:
        """Turn normalised pixels [B, 3, S, S] into normed ViT features [B, L, E]."""

    @abstractmethod
    def query_embeddings(self, features: Tensor) -> Tensor:
        """Turn ViT features [B, L, E] into causal embeddings [B, N, C]; embedding i depends on queries 0 .. i alone."""

    @abstractmethod
    def lookup(self, causal: Tensor) -> Tensor:
        """Turn causal embeddings [B, N, C] into codes [B, N] int64; -1 where an embedding isn't finite."""

    def causal_embeddings(self, pixels: Tensor) -> Tensor:
        """Turn normalised pixels [B, 3, S, S] into causal embeddings [B, N, C]."""
        return self.query_embeddings(self.image_features(pixels))

    def preprocess(self, images: Any) -> Tensor:
        """Turn images, as `encode` takes them, into normalised pixels [B, 3, S, S]; a float tensor stays as it is."""
        from seed_fast.data.image_processor import ImageProcessor

        return ImageProcessor(self.config.image_size, self.config.resize)(images)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Turn normalised pixels into codes, for `torch.export` and compilers: no branch here depends on values.

        Args:
            pixels: [B, 3, S, S] float.

        Returns:
            Codes [B, N] int64; -1 for all codes of an image whose embeddings aren't finite.

        Raises:
            TypeError, ValueError: wrong dtype or shape.
        """
        return codes_of(self, self.causal_embeddings(pixels))

    def encode(self, images: Any) -> Tensor:
        """Turn images into codes.

        Args:
            images: a PIL image, a path, an image file (bytes, or opened as binary), a uint8 array or tensor [H, W, 3]
                or [3, H, W], or a list of these; or a float tensor [B, 3, S, S] that is already resized and normalised.

        Returns:
            Codes [B, N] int64 on the model's device; B is 1 for a single image.

        Raises:
            ValueError: an image can't be read (`ImageError`), an array has the wrong shape, or an image gives
                embeddings that aren't finite. Under `torch.compile` the codes of such an image are -1 instead.
            TypeError: an item isn't an image.
        """
        if torch.compiler.is_compiling():  # which images are bad is known when the compiled code has run
            with torch.no_grad():  # what a compiler traces can't expand a parameter in inference mode
                return self.encode_pixels(self.preprocess(images))
        with torch.inference_mode():
            codes = self.encode_pixels(self.preprocess(images))
            self._check_images(images, (codes >= 0).all(dim=1))
            return codes

    def _check_images(self, images: Any, finite_B: Tensor) -> None:
        """Raise a ValueError that names the first image whose entry of `finite_B` is False."""
        for index in finite_B.logical_not().nonzero().flatten().tolist():
            image = images[index] if isinstance(images, (list, tuple)) else images
            name = str(image) if isinstance(image, (str, Path)) else getattr(image, "name", None) or f"image {index}"
            raise ValueError(f"encode: embeddings of {name} must be finite, got NaN or infinity in {self.dtype}")

    def _check_pixels(self, pixels: Tensor) -> Tensor:
        """Return `pixels` if it is a float tensor [B, 3, S, S]; raise otherwise."""
        size = self.config.image_size
        if not isinstance(pixels, Tensor) or not pixels.is_floating_point():
            got = pixels.dtype if isinstance(pixels, Tensor) else type(pixels).__name__
            raise TypeError(f"pixels must be a float tensor [B, 3, {size}, {size}], got {got}")
        if pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
            raise ValueError(f"pixels must be [B, 3, {size}, {size}], got {list(pixels.shape)}")
        return pixels
