"""The one place where the plain modules call attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seed_fast.ops import attention


def attend(
    q_BHNd: Tensor,
    k_BHLd: Tensor,
    v_BHLd: Tensor,
    *,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
) -> Tensor:
    """Compute attention with torch's fused kernel, or in other ways where its gradient is slow.

    Args:
        q_BHNd: queries.
        k_BHLd: keys.
        v_BHLd: values.
        mask: True where a query may see a key, broadcast to [B, H, N, L]; it replaces `causal`.
        dropout: probability with which an attention weight is dropped.
        causal: True if query i may see keys 0 .. i alone.

    Returns:
        [B, H, N, d].
    """
    # The gradient of torch's fused kernel in bfloat16 on a CPU takes several times as long as its matrix products.
    if not (q_BHNd.device.type == "cpu" and q_BHNd.dtype == torch.bfloat16 and q_BHNd.requires_grad):
        return F.scaled_dot_product_attention(
            q_BHNd, k_BHLd, v_BHLd, attn_mask=mask, dropout_p=dropout, is_causal=causal and mask is None
        )
    # Without mask and dropout our op does it, whose gradient consists of matrix products.
    if mask is None and not dropout:
        q, k, v = (x.transpose(1, 2) for x in (q_BHNd, k_BHLd, v_BHLd))
        return attention(q, k, v, causal=causal).transpose(1, 2)
    # Otherwise the formula itself, with the softmax in float32.
    if mask is None and causal:
        mask = torch.ones(q_BHNd.shape[-2], k_BHLd.shape[-2], dtype=torch.bool).tril()
    scores = (q_BHNd * q_BHNd.shape[-1] ** -0.5) @ k_BHLd.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(v_BHLd.dtype)
    return F.dropout(weights, dropout) @ v_BHLd
