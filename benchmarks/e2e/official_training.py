"""The computation of an official training step, in plain PyTorch, on the parameters of our modules.

It does as LAVIS does: frozen parts run at every step, scores and masks are whole matrices, captions are padded to 32
tokens, every query is projected although the last alone is compared, and the distances to all entries are one matrix.

Source: official SEED_Tokenizer/lavis/models/blip2_models/blip2_casual.py, blip2_qformer_codebook_all_image.py and
Qformer_causual.py, eva_vit.py beside them.

Shapes: B images, L ViT tokens, E ViT width, N queries, C Q-Former width, T tokens of a caption.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.nearest_code import official_lookup
from seed_fast import SeedTokenizer
from seed_fast.model import qformer, vit
from seed_fast.model.decoder import Decoder
from seed_fast.model.stage1 import Stage1Model
from seed_fast.train.stage2 import CODEBOOK_WEIGHT, IMAGE_WEIGHT, RECON_WEIGHT, VQ_WEIGHT

HIDDEN = -10000.0  # added to the scores of keys that a query may not see


def _mix(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Softmax attention of q, k, v [B, H, N, d] by whole matrices; returns [B, N, C]."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if hidden is not None:
        scores = scores + hidden
    weights = F.dropout(scores.softmax(-1), dropout)
    return (weights @ v).transpose(1, 2).flatten(2)


def vit_features(model: vit.ViT, pixels: Tensor) -> Tensor:
    """The ViT's own output [B, L, E] for pixels [B, 3, S, S], before the norm that follows it."""
    embed = model.patch_embed
    patches = F.conv2d(pixels, embed.weight, embed.bias, stride=embed.patch_size).flatten(2).transpose(1, 2)
    x = torch.cat([model.cls_token.expand(len(pixels), -1, -1), patches], dim=1) + model.position_embedding
    for block in model.blocks:
        x = _block(cast(vit.Block, block), x)
    return x


def _block(block: vit.Block, x: Tensor) -> Tensor:
    attn, normed = block.attn, block.norm1(x)
    bias: Tensor | None = attn.qkv.bias
    if attn.q_bias is not None and attn.v_bias is not None:
        bias = torch.cat([attn.q_bias, torch.zeros_like(attn.v_bias), attn.v_bias])
    qkv = F.linear(normed, attn.qkv.weight, bias).unflatten(-1, (3, attn.heads, -1))
    x = x + attn.proj(_mix(*qkv.permute(2, 0, 3, 1, 4)))
    return x + block.mlp(block.norm2(x))


def _bert_attention(
    module: qformer.Attention, x: Tensor, memory: Tensor, hidden: Tensor | None, dropout: float
) -> Tensor:
    q, k, v = (
        linear(source).unflatten(-1, (module.heads, -1)).transpose(1, 2)
        for linear, source in ((module.query, x), (module.key, memory), (module.value, memory))
    )
    normed: Tensor = module.norm(x + F.dropout(module.out(_mix(q, k, v, hidden, dropout)), dropout))
    return normed


def _bert_ffn(module: qformer.FeedForward, x: Tensor, dropout: float) -> Tensor:
    normed: Tensor = module.norm(x + F.dropout(module.down(F.gelu(module.up(x))), dropout))
    return normed


def query_embeddings(model: qformer.QFormer, features: Tensor, dropout: float = 0.0) -> Tensor:
    """Causal embeddings [B, N, C] of normed features [B, L, E]."""
    x = F.dropout(model.norm(model.query_tokens.expand(len(features), -1, -1)), dropout)
    later = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype, device=x.device).triu(1) * HIDDEN
    for module in model.layers:
        layer = cast(qformer.Layer, module)
        x = _bert_attention(layer.self_attention, x, x, later, dropout)
        if layer.cross_attention is not None:
            x = _bert_attention(layer.cross_attention, x, features, None, dropout)
        x = _bert_ffn(layer.ffn, x, dropout)
    return x


def text_embeddings(model: Stage1Model, ids: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """Text embeddings [B, T, C] of captions: ids and mask [B, T]."""
    text, bert = model.text, model.tokenizer.qformer
    words = F.embedding(ids, text.word_embedding, padding_idx=0) + text.position_embedding[: ids.shape[1]]
    x = F.dropout(bert.norm(words), dropout)
    padding = (1 - mask.to(x.dtype))[:, None, None] * HIDDEN
    for layer, ffn in zip(bert.layers, text.ffns, strict=True):
        attended = _bert_attention(cast(qformer.Layer, layer).self_attention, x, x, padding, dropout)
        x = _bert_ffn(cast(qformer.FeedForward, ffn), attended, dropout)
    return x


def stage1_loss(
    model: Stage1Model, features: Tensor, ids: Tensor, mask: Tensor, *, smoothing: float = 0.1, dropout: float = 0.0
) -> Tensor:
    """The contrastive loss of stage 1 for the ViT's own output [B, L, E] and captions [B, T]; a scalar."""
    causal = query_embeddings(model.tokenizer.qformer, model.tokenizer.vision_norm(features), dropout)
    image = F.normalize(model.vision_proj(causal), dim=-1)[:, -1]
    text = F.normalize(model.text_proj(text_embeddings(model, ids, mask, dropout)[:, 0]), dim=-1)
    target = torch.arange(len(image), device=image.device)
    one, other = (
        F.cross_entropy(logits / model.temperature, target, label_smoothing=smoothing)
        for logits in (image @ text.T, text @ image.T)
    )
    return (one + other) / 2


def causal_embeddings(tok: SeedTokenizer, pixels: Tensor) -> Tensor:
    """Causal embeddings [B, N, C] of pixels [B, 3, S, S] by the frozen parts, without their dropout."""
    return query_embeddings(tok.qformer, tok.vision_norm(vit_features(tok.vit, pixels)))


def _decode(decoder: Decoder, x: Tensor) -> Tensor:
    x = x + decoder.position_embedding
    for block in decoder.blocks:
        x = _block(cast(vit.Block, block), x)
    return x


def stage2_loss(tok: SeedTokenizer, causal: Tensor, target: Tensor) -> Tensor:
    """The weighted loss of stage 2, a scalar, for causal embeddings [B, N, C], targets [B, G] and the `mlp` head."""
    quantizer = tok.quantizer
    z = quantizer.encode_task(causal)
    chosen = F.embedding(official_lookup(z.detach().flatten(0, 1), quantizer.codebook).view(z.shape[:2]),
                         quantizer.codebook)  # fmt: skip
    vq = F.mse_loss(chosen.detach(), z) + CODEBOOK_WEIGHT * F.mse_loss(chosen, z.detach())
    decoded = quantizer.decode_task(z + (chosen - z).detach())
    recon = (1 - F.cosine_similarity(_decode(tok.reconstructor, decoded), causal, dim=-1)).mean()
    image = F.mse_loss(tok.head(_decode(tok.generator, decoded)), target)
    return VQ_WEIGHT * vq + RECON_WEIGHT * recon + IMAGE_WEIGHT * image
