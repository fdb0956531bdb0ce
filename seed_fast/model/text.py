"""`TextTower`: the Q-Former's text branch; captions pass through the queries' self-attention without a causal mask.

It serves contrastive training and retrieval; encoding images doesn't need it. Its own weights are word and position
embeddings and one feed-forward per layer; the first norm and the self-attention are the Q-Former's.

Source: official models/seed_qformer/qformer_causual.py (`BertEmbeddings`, `intermediate`, `output`), a BERT-base.

Shapes: B captions, T tokens, C width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seed_fast.model.config import QFormerConfig
from seed_fast.model.qformer import BERT_STD, FeedForward, QFormer, init_bert

PADDING = 0  # id of BERT's [PAD]; its word embedding gets no gradient


class TextTower(nn.Module):
    """Token ids [B, T] and their mask to text embeddings [B, T, C], through the layers of a Q-Former."""

    def __init__(self, config: QFormerConfig, vocab_size: int, max_tokens: int = 512) -> None:
        super().__init__()
        self.word_embedding = nn.Parameter(torch.empty(vocab_size, config.dim))
        self.position_embedding = nn.Parameter(torch.empty(max_tokens, config.dim))
        self.dropout = nn.Dropout(0.0)
        self.ffns = nn.ModuleList(FeedForward(config.dim, config.ffn_dim) for _ in range(config.depth))

    def forward(self, qformer: QFormer, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Return text embeddings [B, T, C]; the mask is 1 for tokens, among them always the first, and 0 for padding.

        Raises:
            TypeError: the ids aren't int64 or int32.
            ValueError: the shapes don't fit each other, or a caption is longer than the position embeddings.
        """
        self._check(input_ids_BT, attention_mask_BT)
        words_BTC = F.embedding(input_ids_BT, self.word_embedding, padding_idx=PADDING)
        x_BTC = self.dropout(qformer.norm(words_BTC + self.position_embedding[: input_ids_BT.shape[1]]))
        is_token_B11T = attention_mask_BT.bool()[:, None, None]
        for layer, ffn in zip(qformer.layers, self.ffns, strict=True):
            x_BTC = ffn(layer.get_submodule("self_attention")(x_BTC, x_BTC, is_token_B11T))
        return x_BTC

    def _check(self, input_ids: Tensor, attention_mask: Tensor) -> None:
        if input_ids.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"TextTower: input_ids must be int64 or int32, got {input_ids.dtype}")
        if input_ids.ndim != 2 or attention_mask.shape != input_ids.shape:
            got = f"{list(input_ids.shape)} and {list(attention_mask.shape)}"
            raise ValueError(f"TextTower: input_ids and attention_mask must both be [B, T], got {got}")
        if input_ids.shape[1] > len(self.position_embedding):
            limit = len(self.position_embedding)
            raise ValueError(f"TextTower: captions must have at most {limit} tokens, got {input_ids.shape[1]}")

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw BERT's initial weights: N(0, 0.02); the padding's word embedding is 0."""
        init_bert(self)
        nn.init.normal_(self.word_embedding, std=BERT_STD)
        self.word_embedding[PADDING] = 0
        nn.init.normal_(self.position_embedding, std=BERT_STD)
