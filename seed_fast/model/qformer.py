"""Q-Former: learned queries read features by cross-attention.

Causal over the image (the tokenizer), or in both directions over the decoded codes (the generation head's Reverse
Q-Former).

Source: official models/seed_qformer/qformer_causual.py, a BERT-base of post-LN layers with exact GELU. Queries have no
position embedding: the causal mask and their own values order them. The query branch is here; the text branch, which
shares the self-attention, is `seed_fast.model.text`. BERT has a dropout of 0.1 after the first norm, after each `out`
and `down` and on the attention weights. It serves training alone: it is 0 until `set_dropout`, and encoding has none.

Shapes: B images, N queries, L features, C query width, E feature width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seed_fast.model.attend import attend
from seed_fast.model.config import QFormerConfig

BERT_NORM_EPS = 1e-12  # BERT's layer_norm_eps
BERT_STD = 0.02  # BERT's initializer_range

Affine = tuple[Tensor, Tensor]  # weight [E] and bias [E] of a norm


@torch.no_grad()
def init_bert(module: nn.Module) -> None:
    """Draw BERT's initial weights for every linear map and norm inside `module`: N(0, 0.02), biases 0, norms 1."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.normal_(child.weight, std=BERT_STD)
            nn.init.zeros_(child.bias)
        elif isinstance(child, nn.LayerNorm):
            child.reset_parameters()


def set_dropout(module: nn.Module, probability: float) -> None:
    """Set the probability of every dropout inside `module`, which acts in train mode alone; BERT's own is 0.1."""
    if not 0 <= probability < 1:
        raise ValueError(f"set_dropout: probability must be in [0, 1), got {probability}")
    for child in module.modules():
        if isinstance(child, nn.Dropout):
            child.p = probability


class Attention(nn.Module):
    """Multi-head attention with BERT's output step: norm(queries + out(attention))."""

    def __init__(self, dim: int, heads: int, encoder_dim: int, *, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(encoder_dim, dim)
        self.value = nn.Linear(encoder_dim, dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(0.0)
        self.norm = nn.LayerNorm(dim, eps=BERT_NORM_EPS)

    def forward(
        self, x_BNC: Tensor, memory_BLE: Tensor, mask: Tensor | None = None, affine: Affine | None = None
    ) -> Tensor:
        """Attend from x to memory, add the result to x, and normalise.

        Args:
            x_BNC: source of the queries.
            memory_BLE: source of the keys and values; x itself for self-attention.
            mask: True where a query may see a key, broadcast to [B, H, N, L]; it replaces the causal mask.
            affine: weight and bias [E]; then memory * weight + bias is read in place of memory.

        Returns:
            [B, N, C].
        """
        # An affine map of the memory is applied to the weights instead, which are smaller.
        key, value = (
            linear(memory_BLE)
            if affine is None
            else F.linear(memory_BLE, linear.weight * affine[0], linear.bias + linear.weight @ affine[1])
            for linear in (self.key, self.value)
        )
        q_BHNd, k_BHLd, v_BHLd = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2) for projected in (self.query(x_BNC), key, value)
        )
        # The official mask adds -10000 to the scores of later queries. Their softmax weights underflow to exactly 0 in
        # float32 (exp(-104) does), so leaving those keys out, as is_causal does, gives the same sums.
        dropout = self.dropout.p if self.training else 0.0
        attended = attend(q_BHNd, k_BHLd, v_BHLd, mask=mask, dropout=dropout, causal=self.causal)
        return self.norm(x_BNC + self.dropout(self.out(attended.transpose(1, 2).flatten(2))))


class FeedForward(nn.Module):
    """norm(x + down(GELU(up(x)))), with the exact (erf) GELU."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, ffn_dim)
        self.down = nn.Linear(ffn_dim, dim)
        self.dropout = nn.Dropout(0.0)
        self.norm = nn.LayerNorm(dim, eps=BERT_NORM_EPS)

    def forward(self, x_BNC: Tensor) -> Tensor:
        return self.norm(x_BNC + self.dropout(self.down(F.gelu(self.up(x_BNC)))))


class Layer(nn.Module):
    """One layer, [B, N, C] to [B, N, C]: self-attention, cross-attention if it has one, feed-forward; each post-LN.

    Every `cross_attention_every`-th layer has cross-attention, beginning with layer 0.
    """

    def __init__(self, config: QFormerConfig, index: int) -> None:
        super().__init__()
        dim, heads = config.dim, config.heads
        self.self_attention = Attention(dim, heads, dim, causal=config.causal)
        self.cross_attention = (
            Attention(dim, heads, config.encoder_dim, causal=False)
            if index % config.cross_attention_every == 0
            else None
        )
        self.ffn = FeedForward(dim, config.ffn_dim)

    def forward(self, x_BNC: Tensor, features_BLE: Tensor, affine: Affine | None = None) -> Tensor:
        x_BNC = self.self_attention(x_BNC, x_BNC)
        if self.cross_attention is not None:
            x_BNC = self.cross_attention(x_BNC, features_BLE, affine=affine)
        return self.ffn(x_BNC)


class QFormer(nn.Module):
    """Features [B, L, E] to query embeddings [B, N, C].

    With `config.causal`, embedding i depends on queries 0..i, and on all features.
    """

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.empty(1, config.num_queries, config.dim))
        self.norm = nn.LayerNorm(config.dim, eps=BERT_NORM_EPS)
        self.dropout = nn.Dropout(0.0)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.depth))

    def forward(self, features_BLE: Tensor, affine: Affine | None = None) -> Tensor:
        """Turn features [B, L, E] into query embeddings [B, N, C].

        Args:
            features_BLE: output of the image encoder, or of a decoder.
            affine: weight and bias [E] of a norm; then features * weight + bias are read. The map is folded into the
                key and value projections. Its gradient then comes with theirs and the features need none, which saves
                a third of the work in cross-attention where the encoder is frozen.
        """
        batch = features_BLE.shape[0]  # len() would fix it in an exported program
        x_BNC = self.dropout(self.norm(self.query_tokens).expand(batch, -1, -1))
        for layer in self.layers:
            x_BNC = layer(x_BNC, features_BLE, affine)
        return x_BNC

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw BERT's initial weights: N(0, 0.02), biases 0, norms 1."""
        init_bert(self)
        nn.init.normal_(self.query_tokens, std=BERT_STD)
