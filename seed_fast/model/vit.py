"""EVA-CLIP ViT: an image becomes one feature vector per patch, preceded by that of the class token.

Source: official models/seed_qformer/eva_vit.py. Pre-LN blocks, exact GELU, absolute position embedding; no layer scale,
no relative position, no final norm (the tokenizer's `vision_norm` follows).

Shapes: B images, L tokens, D width, H heads, S image side and P patch side in px.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seed_fast.model.attend import attend
from seed_fast.model.config import SeedConfig

BLOCK_NORM_EPS = 1e-6  # the official blocks pass it; PyTorch's default 1e-5 changes codes


class Attention(nn.Module):
    """Multi-head self-attention without a causal mask.

    `key_bias=False` is EVA's form: biases for queries and values alone. (A key bias adds the same number to all scores
    of a query, which softmax ignores.) They stay two parameters, as in official files, so that conversion only renames.
    """

    def __init__(self, dim: int, heads: int, *, key_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=key_bias)
        self.q_bias = None if key_bias else nn.Parameter(torch.empty(dim))
        self.v_bias = None if key_bias else nn.Parameter(torch.empty(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return [B, L, D], without the residual."""
        bias: Tensor | None = self.qkv.bias
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x_BLD, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        q_BHLd, k_BHLd, v_BHLd = qkv.permute(2, 0, 3, 1, 4)
        out_BHLd = attend(q_BHLd, k_BHLd, v_BHLd)
        return self.proj(out_BHLd.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """fc2(GELU(fc1(x))), with the exact (erf) GELU."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, dim)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BLD)))


class Block(nn.Module):
    """Pre-LN Transformer block, [B, L, D] to [B, L, D]; the ViT has it without a key bias, the decoders with one."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, *, key_bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)
        self.attn = Attention(dim, heads, key_bias=key_bias)
        self.norm2 = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)
        self.mlp = Mlp(dim, ffn_dim)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_BLD = x_BLD + self.attn(self.norm1(x_BLD))
        return x_BLD + self.mlp(self.norm2(x_BLD))


class PatchEmbed(nn.Module):
    """Linear map of each P x P patch: the official stride-P convolution, written as the matrix product that it is.

    cuDNN convolutions default to TF32, whose 10-bit mantissa changes codes; matrix products don't.
    """

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.empty(dim, 3, patch_size, patch_size))
        self.bias = nn.Parameter(torch.empty(dim))

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """Return [B, (S/P)^2, D], patches in reading order."""
        return F.linear(self.patches(pixels_B3SS), self.weight.flatten(1), self.bias)

    def patches(self, pixels_B3SS: Tensor) -> Tensor:
        """Cut pixels into patches in reading order, [B, (S/P)^2, 3 * P * P]: what the linear map reads."""
        side = self.patch_size
        patches = pixels_B3SS.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # [B, 3, rows, P, columns, P]
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class ViT(nn.Module):
    """Pixels [B, 3, S, S] to the last block's features [B, L, D], not normed; L = (S/P)^2 + 1, class token first."""

    def __init__(self, config: SeedConfig) -> None:
        super().__init__()
        dim = config.vit_dim
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.position_embedding = nn.Parameter(torch.empty(1, config.num_tokens, dim))
        self.blocks = nn.ModuleList(
            Block(dim, config.vit_heads, config.vit_ffn_dim, key_bias=False) for _ in range(config.vit_depth)
        )

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        patches = self.patch_embed(pixels_B3SS)
        batch = patches.shape[0]  # len() would fix it in an exported program
        cls = self.cls_token.expand(batch, -1, -1)
        x_BLD = torch.cat([cls, patches], dim=1) + self.position_embedding
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return x_BLD

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the official initial weights: N(0, 0.02), both output projections of block i divided by sqrt(2 i)."""
        std = 0.02  # the official trunc_normal_ cuts at +-2, a hundred deviations: it is a plain normal
        bound = self.patch_embed.weight[0].numel() ** -0.5  # PyTorch's default for a convolution
        nn.init.uniform_(self.patch_embed.weight, -bound, bound)
        nn.init.uniform_(self.patch_embed.bias, -bound, bound)
        nn.init.normal_(self.cls_token, std=std)
        nn.init.normal_(self.position_embedding, std=std)
        for number, block in enumerate(self.blocks, start=1):
            output_std = std / math.sqrt(2 * number)
            for name, parameter in block.named_parameters():
                if name in ("norm1.weight", "norm2.weight"):
                    nn.init.ones_(parameter)
                elif parameter.ndim == 1:
                    nn.init.zeros_(parameter)
                else:
                    is_output = name in ("attn.proj.weight", "mlp.fc2.weight")
                    nn.init.normal_(parameter, std=output_std if is_output else std)
