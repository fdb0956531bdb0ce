"""Quantizer: causal embeddings to codes, and codes back to the width of the Q-Former.

Source: official models/seed_qformer/qformer_quantizer.py (encode_task_layer, VectorQuantizer2, decode_task_layer).
Nearest entry by plain squared distance: no normalisation, no moving average.

Shapes: B images, N codes, C Q-Former width, K codebook entries, D code width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seed_fast.model.config import SeedConfig
from seed_fast.ops import nearest_code


def task_layer(input_dim: int, hidden_dim: int, output_dim: int) -> nn.Sequential:
    """Build linear, tanh, linear: the form of both maps, into the space of the codebook and out of it."""
    return nn.Sequential(nn.Linear(input_dim, hidden_dim), nn.Tanh(), nn.Linear(hidden_dim, output_dim))


class Quantizer(nn.Module):
    """The codebook [K, D] between `encode_task` (C to D) and `decode_task` (D to C)."""

    def __init__(self, config: SeedConfig) -> None:
        super().__init__()
        width, code = config.qformer_dim, config.code_dim
        self.encode_task = task_layer(width, width, code)
        self.codebook = nn.Parameter(torch.empty(config.codebook_size, code))
        self.decode_task = task_layer(code, code, width)

    def lookup(self, causal_BNC: Tensor) -> Tensor:
        """Turn causal embeddings into codes [B, N] int64; -1 where an embedding holds NaN."""
        return nearest_code(self.encode_task(causal_BNC), self.codebook)

    def embed(self, codes_BN: Tensor) -> Tensor:
        """Return the codebook entries [B, N, D] of codes."""
        return F.embedding(codes_BN, self.codebook)

    def forward(self, codes_BN: Tensor) -> Tensor:
        """Turn codes into the embeddings [B, N, C] that the decoders read."""
        return self.decode_task(self.embed(codes_BN))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the official initial weights: codebook U(-1/K, 1/K), PyTorch's defaults for the linear maps."""
        bound = 1 / len(self.codebook)
        nn.init.uniform_(self.codebook, -bound, bound)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
