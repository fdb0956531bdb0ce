"""A tokenizer with the stages of the real one and codes that are a plain function of the pixels. Takes no time."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn


class FakeTokenizer(nn.Module):
    """Code k of an image is a hash of its pixels and k. White images have embeddings that are infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_size=8, codebook_size=512, num_codes=4, resize="bicubic")
        self.register_buffer("weights", torch.arange(1, 1 + 3 * 8 * 8, dtype=torch.float64))
        self.device, self.dtype, self.trained = torch.device("cpu"), torch.float32, True

    def image_features(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1).double()

    def query_embeddings(self, features: Tensor) -> Tensor:
        causal = (features * self.weights).sum(-1, keepdim=True) * torch.arange(1, 5)
        return causal.masked_fill(causal[:, :1] > 30_000, torch.inf)

    def lookup(self, causal: Tensor) -> Tensor:
        return causal.nan_to_num(posinf=7).mul(1e4).round().to(torch.int64) % 512
