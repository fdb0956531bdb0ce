"""`ImageEncoder`: what every forward of the tokenizer shares, from images to checked codes.

Shapes: B images, S image side in px, L ViT tokens, E ViT width, N codes, C Q-Former width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seed_fast.model.config import SeedConfig


class ImageEncoder(ABC):
    """Three stages, `image_features`, `query_embeddings` and `lookup`, and what is made of them."""

    config: SeedConfig

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """In which type it computes."""

    @abstractmethod
    def image_features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] to normed ViT features [B, L, E]."""

    @abstractmethod
    def query_embeddings(self, features: Tensor) -> Tensor:
        """ViT features [B, L, E] to causal embeddings [B, N, C]; the first k don't see later queries."""

    @abstractmethod
    def lookup(self, causal: Tensor) -> Tensor:
        """Causal embeddings [B, N, C] to codes [B, N] int64; -1 where an embedding isn't finite."""

    def causal_embeddings(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] to causal embeddings [B, N, C]."""
        return self.query_embeddings(self.image_features(pixels))

    def preprocess(self, images: Any) -> Tensor:
        """Images as `encode` takes them to normalised pixels [B, 3, S, S]; a float tensor passes through."""
        from seed_fast.data.image_processor import ImageProcessor

        return ImageProcessor(self.config.image_size, self.config.resize)(images)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Normalised pixels to codes, without a decision that depends on values, for `torch.export` and compilers.

        Args:
            pixels: [B, 3, S, S] float.

        Returns:
            Codes [B, N] int64; -1 for all codes of an image whose embeddings aren't finite.

        Raises:
            TypeError, ValueError: not such a tensor.
        """
        causal = self.causal_embeddings(pixels)
        # Before the lookup: tanh would turn an infinite embedding into an ordinary code.
        finite_B1 = causal.isfinite().flatten(1).all(dim=1, keepdim=True)
        codes = self.lookup(causal)
        return codes.masked_fill(~(finite_B1 & (codes >= 0).all(dim=1, keepdim=True)), -1)

    def encode(self, images: Any) -> Tensor:
        """Images to codes.

        Args:
            images: a PIL image, a path, an image file (bytes, or opened as binary), a uint8 array or tensor [H, W, 3]
                or [3, H, W], or a list of these; or a float tensor [B, 3, S, S] that is already resized and normalised.

        Returns:
            Codes [B, N] int64 on the model's device; B is 1 for a single image.

        Raises:
            ValueError: an image can't be read (`ImageError`), an array has the wrong shape, or an image gives
                embeddings that aren't finite. Under `torch.compile` the codes of such an image are -1 instead.
            TypeError: something isn't an image.
        """
        if torch.compiler.is_compiling():  # which images are bad is known when the compiled code has run
            with torch.no_grad():  # what a compiler traces can't expand a parameter in inference mode
                return self.encode_pixels(self.preprocess(images))
        with torch.inference_mode():
            codes = self.encode_pixels(self.preprocess(images))
            self._check_images(images, (codes >= 0).all(dim=1))
            return codes

    def _check_images(self, images: Any, finite_B: Tensor) -> None:
        for index in finite_B.logical_not().nonzero().flatten().tolist():
            image = images[index] if isinstance(images, (list, tuple)) else images
            name = str(image) if isinstance(image, (str, Path)) else getattr(image, "name", None) or f"image {index}"
            raise ValueError(f"encode: embeddings of {name} must be finite, got NaN or infinity in {self.dtype}")

    def _check_pixels(self, pixels: Tensor) -> Tensor:
        size = self.config.image_size
        if not isinstance(pixels, Tensor) or not pixels.is_floating_point():
            got = pixels.dtype if isinstance(pixels, Tensor) else type(pixels).__name__
            raise TypeError(f"pixels must be a float tensor [B, 3, {size}, {size}], got {got}")
        if pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
            raise ValueError(f"pixels must be [B, 3, {size}, {size}], got {list(pixels.shape)}")
        return pixels
