"""The ViT of the inference plan: few passes over memory, and no intermediate result that is kept longer than needed.

Queries, keys and values of a block come from one product with one bias, attention reads its thirds in place, and sums
and GELU are written over their inputs. The residual stream, norms and their statistics are float32, products run in
`dtype`. A sum and the norm that follows it, which may be the next block's, are one step (`passes`).

Shapes: B images, L tokens, E width, S image side in px.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seed_fast.model import vit
from seed_fast.model.cpu_products import Linear
from seed_fast.model.fast_attention import SelfAttention
from seed_fast.model.passes import AddNorm


class FastBlock:
    """Weights and steps of one ViT block; `FastViT` runs them, since a sum and the next block's norm are one step."""

    def __init__(self, block: vit.Block, dtype: torch.dtype, tokens: int) -> None:
        attn = block.attn
        assert attn.q_bias is not None
        assert attn.v_bias is not None
        bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
        self.heads = attn.heads
        self.norm1, self.norm2 = AddNorm(block.norm1, dtype), AddNorm(block.norm2, dtype)
        self.qkv = Linear(attn.qkv.weight, bias, dtype)
        self.proj = Linear(attn.proj.weight, attn.proj.bias, dtype)
        self.fc1 = Linear(block.mlp.fc1.weight, block.mlp.fc1.bias, dtype, gelu=True)
        width = len(attn.q_bias) // attn.heads
        self.attention = SelfAttention(tokens, attn.heads, width, dtype, attn.q_bias.device)
        self.fc2 = Linear(block.mlp.fc2.weight, block.mlp.fc2.bias, dtype)

    def attend(self, normed_BLE: Tensor) -> Tensor:
        """Return what the attention adds to the residual stream, [B, L, E]."""
        q, k, v = self.qkv(normed_BLE).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.proj(self.attention(q, k, v).flatten(2))


class FastViT:
    """Normalised pixels [B, 3, S, S] to normed features [B, L, E] in `dtype`."""

    def __init__(self, module: vit.ViT, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        self.dtype = dtype
        embed = module.patch_embed
        self.patches = embed.patches
        self.patch_embed = Linear(embed.weight.flatten(1), embed.bias, embed.weight.dtype)
        self.prefix_1LE = module.position_embedding.detach().float().clone()
        self.prefix_1LE[:, :1] += module.cls_token.detach().float()
        blocks: list[Any] = list(module.blocks)
        self.blocks = [FastBlock(block, dtype, self.prefix_1LE.shape[1]) for block in blocks]
        self.norm = AddNorm(norm, dtype)

    def __call__(self, pixels_B3SS: Tensor) -> Tensor:
        # Patches and positions; the class token is part of the prefix.
        x_BLE = self.prefix_1LE.repeat(len(pixels_B3SS), 1, 1)
        x_BLE[:, 1:] += self.patch_embed(self.patches(pixels_B3SS))
        # The first norm has no sum before it; each later one belongs to the sum that precedes it.
        normed_BLE = self.blocks[0].norm1(x_BLE)
        following_norms = [*(block.norm1 for block in self.blocks[1:]), self.norm]
        for block, following in zip(self.blocks, following_norms, strict=True):
            x_BLE, normed_BLE = block.norm2.after(x_BLE, block.attend(normed_BLE))
            hidden = block.fc1(normed_BLE)
            del normed_BLE  # before the next product needs memory
            x_BLE, normed_BLE = following.after(x_BLE, block.fc2(hidden))
            del hidden
        return normed_BLE.to(self.dtype)
