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
    """`scaled_dot_product_attention`, [B, H, N, d]; `mask` is True where a query may look, broadcast to [B, H, N, L].

    Training in bfloat16 on a CPU goes another way: there the gradient of torch's fused kernel takes several times as
    long as the matrix products that it consists of.
    """
    if not (q_BHNd.device.type == "cpu" and q_BHNd.dtype == torch.bfloat16 and q_BHNd.requires_grad):
        return F.scaled_dot_product_attention(
            q_BHNd, k_BHLd, v_BHLd, attn_mask=mask, dropout_p=dropout, is_causal=causal and mask is None
        )
    if mask is None and not dropout:
        q, k, v = (x.transpose(1, 2) for x in (q_BHNd, k_BHLd, v_BHLd))
        return attention(q, k, v, causal=causal).transpose(1, 2)
    if mask is None and causal:
        mask = torch.ones(q_BHNd.shape[-2], k_BHLd.shape[-2], dtype=torch.bool).tril()
    scores = (q_BHNd * q_BHNd.shape[-1] ** -0.5) @ k_BHLd.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(v_BHLd.dtype)
    return F.dropout(weights, dropout) @ v_BHLd
