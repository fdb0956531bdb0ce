"""`FastTokenizer`: the tokenizer's inference plan. The same weights, less work, fewer launches.

What the plain modules compute and this does not:

- Layer 0's self-attention reads the query tokens alone, so its output is the same for every image: made once, with the
  queries of layer 0's cross-attention.
- The keys and values of the cross-attention are never formed ("absorbed"). With a head's maps W_Q [C, d], W_K and W_V
  [E, d], a score is (x W_Q) (f W_K)^T = (x W_Q W_K^T) f^T, and a head's output is (weights f) W_V: N queries go through
  the maps instead of L features, 38 % fewer multiply-adds at full size. The key bias drops out of the softmax; the
  value bias passes through it, weights summing to 1, into the output bias.
- Or ("projected") all layers' keys and values come from one product, since all read the same features.
- Queries, keys and values of each self-attention are one product, and attention reads its halves in place.

Matrix products run in `dtype`, the residual stream, norms and softmax in float32. On a GPU the three stages are CUDA
graphs (see `graphs`).

Shapes: B images, L ViT tokens, E ViT width, N codes, C Q-Former width, H heads, d head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from seed_fast.model import qformer
from seed_fast.model.encoder import ImageEncoder
from seed_fast.model.fast_vit import FastViT, Linear, Norm, gelu_
from seed_fast.model.graphs import Graphs, Stage, in_parts
from seed_fast.model.quantizer import Quantizer
from seed_fast.ops import attention, nearest_code, pack_codebook

if TYPE_CHECKING:
    from seed_fast.model.tokenizer import SeedTokenizer


class SelfAttention:
    """norm(x + out(attention(x))) with one product for queries, keys and values."""

    def __init__(self, module: qformer.Attention, dtype: torch.dtype) -> None:
        parts = (module.query, module.key, module.value)
        self.heads, self.causal = module.heads, module.causal
        self.qkv = Linear(torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]), dtype)
        self.out = Linear(module.out.weight, module.out.bias, dtype)
        self.norm = Norm(module.norm)

    def __call__(self, x_BNC: Tensor) -> Tensor:
        q, k, v = self.qkv(x_BNC).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.norm(x_BNC + self.out(attention(q, k, v, causal=self.causal).flatten(2)))


class AbsorbedCrossAttention:
    """Cross-attention whose keys and values are the features themselves."""

    def __init__(self, module: qformer.Attention, dtype: torch.dtype) -> None:
        heads = module.heads
        query, key, value = (
            m.weight.detach().unflatten(0, (heads, -1)) for m in (module.query, module.key, module.value)
        )
        self.heads, self.width = heads, query.shape[1]
        self.query = Linear(module.query.weight, module.query.bias, dtype)
        self.key_HdE = (key * self.width**-0.5).to(dtype)
        self.value_HEd = value.transpose(1, 2).to(dtype)
        bias = module.out.bias + module.out.weight @ module.value.bias
        self.out = Linear(module.out.weight, bias, dtype)
        self.norm = Norm(module.norm)

    def absorb(self, x_BNC: Tensor) -> Tensor:
        """Queries of the features [B, N * H, E], query-major."""
        batch, count, _ = x_BNC.shape
        q_HMd = self.query(x_BNC).unflatten(-1, (self.heads, -1)).flatten(0, 1).transpose(0, 1)
        absorbed_MHE = q_HMd.new_empty(batch * count, self.heads, self.key_HdE.shape[2])
        torch.bmm(q_HMd, self.key_HdE, out=absorbed_MHE.transpose(0, 1))
        return absorbed_MHE.view(batch, count * self.heads, -1)

    def __call__(self, x_BNC: Tensor, features_BLE: Tensor, absorbed: Tensor | None = None) -> Tensor:
        batch, count = len(features_BLE), x_BNC.shape[1]
        absorbed_BME = self.absorb(x_BNC) if absorbed is None else absorbed.expand(batch, -1, -1)
        scores_BML = torch.bmm(absorbed_BME, features_BLE.transpose(1, 2))
        weights_BML = scores_BML.softmax(-1, dtype=torch.float32).to(scores_BML.dtype)
        seen_HME = torch.bmm(weights_BML, features_BLE).view(batch * count, self.heads, -1).transpose(0, 1)
        heads_MHd = seen_HME.new_empty(batch * count, self.heads, self.width)
        torch.bmm(seen_HME, self.value_HEd, out=heads_MHd.transpose(0, 1))
        return self.norm(x_BNC + self.out(heads_MHd.view(batch, count, -1)))


class ProjectedCrossAttention:
    """Cross-attention over keys and values that one product made for all layers."""

    def __init__(self, module: qformer.Attention, dtype: torch.dtype) -> None:
        self.heads = module.heads
        self.query = Linear(module.query.weight, module.query.bias, dtype)
        self.out = Linear(module.out.weight, module.out.bias, dtype)
        self.norm = Norm(module.norm)

    def __call__(self, x_BNC: Tensor, key_value_BLHd: tuple[Tensor, Tensor], absorbed: Tensor | None = None) -> Tensor:
        q_BNHd = self.query(x_BNC).unflatten(-1, (self.heads, -1))
        key, value = key_value_BLHd
        return self.norm(x_BNC + self.out(attention(q_BNHd.expand(len(key), -1, -1, -1), key, value).flatten(2)))


class FeedForward:
    """norm(x + down(GELU(up(x))))."""

    def __init__(self, module: qformer.FeedForward, dtype: torch.dtype) -> None:
        self.up = Linear(module.up.weight, module.up.bias, dtype)
        self.down = Linear(module.down.weight, module.down.bias, dtype)
        self.norm = Norm(module.norm)

    def __call__(self, x_BNC: Tensor) -> Tensor:
        return self.norm(x_BNC + self.down(gelu_(self.up(x_BNC))))


class FastQFormer:
    """Features [B, L, E] to causal embeddings [B, N, C] float32."""

    def __init__(self, module: qformer.QFormer, dtype: torch.dtype, *, absorbed: bool) -> None:
        layers: list[Any] = list(module.layers)
        crosses: list[Any] = [layer.cross_attention for layer in layers]
        kind: Any = AbsorbedCrossAttention if absorbed else ProjectedCrossAttention
        self.dtype, self.absorbed = dtype, absorbed
        queries = module.norm(module.query_tokens)
        self.start_1NC = layers[0].self_attention(queries, queries).detach().float()
        self.selves = [None, *(SelfAttention(layer.self_attention, dtype) for layer in layers[1:])]
        self.crosses = [None if cross is None else kind(cross, dtype) for cross in crosses]
        self.ffns = [FeedForward(layer.ffn, dtype) for layer in layers]
        first: Any = self.crosses[0]
        self.start_absorbed_1ME = first.absorb(self.start_1NC) if absorbed else None
        if not absorbed:
            parts = [linear for cross in crosses if cross is not None for linear in (cross.key, cross.value)]
            self.heads = crosses[0].heads
            self.key_value = Linear(torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]), dtype)

    def __call__(self, features_BLE: Tensor) -> Tensor:
        features_BLE = features_BLE.to(self.dtype)
        sources = self._sources(features_BLE)
        x_BNC, absorbed = self.start_1NC, self.start_absorbed_1ME
        for self_attention, cross_attention, ffn in zip(self.selves, self.crosses, self.ffns, strict=True):
            if self_attention is not None:
                x_BNC = self_attention(x_BNC)
            if cross_attention is not None:
                x_BNC, absorbed = cross_attention(x_BNC, next(sources), absorbed), None
            x_BNC = ffn(x_BNC)
        return x_BNC

    def _sources(self, features_BLE: Tensor) -> Iterator[Any]:
        """What each cross-attention reads: the features, or its keys and values [B, L, H, d]."""
        if self.absorbed:
            return itertools.repeat(features_BLE)
        made = self.key_value(features_BLE).unflatten(-1, (-1, 2, self.heads, self.start_1NC.shape[2] // self.heads))
        return (layer.unbind(2) for layer in made.unbind(2))


class FastLookup:
    """Causal embeddings [B, N, C] to codes [B, N] int64. Two small products decide the codes: they stay in float32."""

    def __init__(self, module: Quantizer) -> None:
        maps: list[Any] = [m for m in module.encode_task if isinstance(m, nn.Linear)]
        self.into, self.out = (Linear(m.weight, m.bias, torch.float32) for m in maps)
        self.codebook = pack_codebook(module.codebook.detach().float())

    def __call__(self, causal_BNC: Tensor) -> Tensor:
        return nearest_code(self.out(self.into(causal_BNC).tanh_()), self.codebook)


class FastTokenizer(ImageEncoder):
    """What `SeedTokenizer.fast` returns: `encode` and its stages, without gradients, losses or decoders.

    Its float32 codes are the tokenizer's own. It shares the weights that need no new layout or dtype, so after a change
    of the tokenizer's weights, make a new plan.

    Args:
        tokenizer: the source of the weights.
        dtype: type of the matrix products, float32, bfloat16 or float16. Default: the tokenizer's.
        cross_attention: "absorbed" or "projected".
        graphs: on a GPU, replay CUDA graphs; False launches every kernel, for profilers and debuggers.

    Raises:
        ValueError: `cross_attention` is neither.

    Example:
        >>> from seed_fast import SeedTokenizer
        >>> tok = SeedTokenizer.from_pretrained("seed-tiny")
        >>> pixels = torch.zeros(2, 3, 64, 64)
        >>> torch.equal(tok.fast().encode(pixels), tok.encode(pixels))
        True
    """

    @torch.no_grad()
    def __init__(
        self,
        tokenizer: SeedTokenizer,
        *,
        dtype: torch.dtype | None = None,
        cross_attention: str = "absorbed",
        graphs: bool = True,
    ) -> None:
        if cross_attention not in ("absorbed", "projected"):
            raise ValueError(f"fast: cross_attention must be 'absorbed' or 'projected', got {cross_attention!r}")
        self.config = tokenizer.config
        self.trained = tokenizer.trained
        self._device, self._dtype = tokenizer.device, dtype or tokenizer.dtype
        self.vit = FastViT(tokenizer.vit, tokenizer.vision_norm, self._dtype)
        self.qformer = FastQFormer(tokenizer.qformer, self._dtype, absorbed=cross_attention == "absorbed")
        self.nearest = FastLookup(tokenizer.quantizer)
        made = Graphs(self._device) if graphs and self._device.type == "cuda" else None

        def stage(function: Stage, row_shape: tuple[int, ...], dtype: torch.dtype) -> Stage:
            return made.stage(function, row_shape, dtype) if made else partial(in_parts, function)

        config, side = self.config, self.config.image_size
        self._image_features = stage(self.vit, (3, side, side), torch.float32)
        self._query_embeddings = stage(self.qformer, (config.num_tokens, config.vit_dim), self._dtype)
        self._lookup = stage(self.nearest, (config.num_codes, config.qformer_dim), torch.float32)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @torch.no_grad()
    def image_features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, S, S] to normed ViT features [B, L, E] in the plan's dtype."""
        return self._image_features(self._check_pixels(pixels, torch.float32))

    @torch.no_grad()
    def query_embeddings(self, features: Tensor) -> Tensor:
        """ViT features [B, L, E] to causal embeddings [B, N, C] float32."""
        return self._query_embeddings(features)

    @torch.no_grad()
    def lookup(self, causal: Tensor) -> Tensor:
        """Causal embeddings [B, N, C] to codes [B, N] int64; -1 where an embedding isn't finite."""
        return self._lookup(causal)
