"""Decoders: code embeddings to reconstructed causal embeddings, and to features that condition an image generator.

Source: official models/seed_qformer/qformer_quantizer.py (`blocks`, `blocks_image`, `image_down`, `distill_image_proj`)
and vit.py; for SEED-1 branch v1, models/visual_tokenizer.py (`blocks_text`, `Reverse_Qformer`, `distill_text_proj`).

Shapes: B images, N codes, C Q-Former width, T generation tokens, G generation width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seed_fast.model.config import SeedConfig
from seed_fast.model.qformer import QFormer
from seed_fast.model.vit import Block

DECODER_FFN_RATIO = 4  # the official blocks widen by 4 whatever the width of the Q-Former's own feed-forward
MLP_WIDTHS = (256, 128, 32)  # widths of the official image_down, constants there: 768 -> 256 -> 128 -> 32 per code


def reset_linears(module: nn.Module) -> None:
    """Draw PyTorch's default initial weights for all linear maps and norms, as the official decoders do."""
    for child in module.modules():
        if isinstance(child, (nn.Linear, nn.LayerNorm)):
            child.reset_parameters()


class Decoder(nn.Module):
    """Code embeddings [B, N, C] to [B, N, C]: Transformer blocks without a causal mask, and without a final norm."""

    def __init__(self, config: SeedConfig) -> None:
        super().__init__()
        dim = config.qformer_dim
        self.position_embedding = nn.Parameter(torch.empty(1, config.num_codes, dim))
        self.blocks = nn.ModuleList(
            Block(dim, config.decoder_heads, DECODER_FFN_RATIO * dim, key_bias=True)
            for _ in range(config.decoder_depth)
        )

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = x_BNC + self.position_embedding
        for block in self.blocks:
            x_BNC = block(x_BNC)
        return x_BNC

    @torch.no_grad()
    def init_weights(self) -> None:
        nn.init.zeros_(self.position_embedding)
        reset_linears(self)


class MlpHead(nn.Module):
    """The head of the released SEED-2: [B, N, C] to [B, G].

    Each code embedding is reduced to 32 numbers; those of all codes, concatenated, are projected to one vector.
    """

    def __init__(self, config: SeedConfig) -> None:
        super().__init__()
        wide, middle, narrow = MLP_WIDTHS
        self.down = nn.Sequential(
            nn.Linear(config.qformer_dim, wide, bias=False),
            nn.ReLU(),
            nn.Linear(wide, middle, bias=False),
            nn.ReLU(),
            nn.Linear(middle, narrow, bias=False),
        )
        self.proj = nn.Linear(config.num_codes * narrow, config.generation_dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        return self.proj(self.down(x_BNC).flatten(1))

    def init_weights(self) -> None:
        reset_linears(self)


class ReverseQFormerHead(nn.Module):
    """A Reverse Q-Former whose T queries read the decoded codes: [B, N, C] to [B, T, G], or to [B, G] when T is 1."""

    def __init__(self, config: SeedConfig) -> None:
        super().__init__()
        self.qformer = QFormer(config.reverse_qformer)
        self.proj = nn.Linear(config.qformer_dim, config.generation_dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        generated_BTG = self.proj(self.qformer(x_BNC))
        return generated_BTG.squeeze(1) if generated_BTG.shape[1] == 1 else generated_BTG

    def init_weights(self) -> None:
        self.qformer.init_weights()
        self.proj.reset_parameters()


def build_head(config: SeedConfig) -> MlpHead | ReverseQFormerHead:
    """Build the generation head that `config.head` names."""
    return MlpHead(config) if config.head == "mlp" else ReverseQFormerHead(config)
