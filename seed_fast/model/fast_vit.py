"""The ViT of the inference plan: few passes over memory, none of them kept.

Queries, keys and values of a block are one product with one bias, attention reads its thirds in place, sums and GELU
are written over their inputs. The residual stream, norms and their statistics are float32, products run in `dtype`.

bias+GELU and residual+norm are not fused into kernels of their own: docs/fast.md says what that could gain.

Shapes: B images, L tokens, E width, S image side in px.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seed_fast.model import vit
from seed_fast.model.products import Linear
from seed_fast.ops import attention


class Norm:
    """Layer norm of a float32 residual stream, in float32."""

    def __init__(self, module: nn.LayerNorm) -> None:
        self.weight, self.bias = module.weight.detach().float(), module.bias.detach().float()
        self.eps = module.eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class FastBlock:
    """A block of the ViT, added to its input."""

    def __init__(self, block: vit.Block, dtype: torch.dtype) -> None:
        attn = block.attn
        assert attn.q_bias is not None
        assert attn.v_bias is not None
        bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
        self.heads = attn.heads
        self.norm1, self.norm2 = Norm(block.norm1), Norm(block.norm2)
        self.qkv = Linear(attn.qkv.weight, bias, dtype)
        self.proj = Linear(attn.proj.weight, attn.proj.bias, dtype)
        self.fc1 = Linear(block.mlp.fc1.weight, block.mlp.fc1.bias, dtype, gelu=True)
        self.fc2 = Linear(block.mlp.fc2.weight, block.mlp.fc2.bias, dtype)

    def __call__(self, x_BLE: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x_BLE)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        x_BLE += self.proj(attention(q, k, v).flatten(2))
        del q, k, v  # their memory serves the MLP
        x_BLE += self.fc2(self.fc1(self.norm2(x_BLE)))
        return x_BLE


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
        self.blocks = [FastBlock(block, dtype) for block in blocks]
        self.norm = Norm(norm)

    def __call__(self, pixels_B3SS: Tensor) -> Tensor:
        x_BLE = self.prefix_1LE.repeat(len(pixels_B3SS), 1, 1)
        x_BLE[:, 1:] += self.patch_embed(self.patches(pixels_B3SS))
        for block in self.blocks:
            x_BLE = block(x_BLE)
        return self.norm(x_BLE).to(self.dtype)
