"""The Q-Former of the inference plan: layer 0's constants, and cross-attention in one of two orders of its sums.

- "absorbed": the keys and values of the cross-attention are never computed. With a head's maps W_Q [C, d], W_K and W_V
  [E, d], a score is (x W_Q) (f W_K)^T = (x W_Q W_K^T) f^T, and a head's output is (weights f) W_V: N queries go through
  the maps instead of L features, 38 % fewer multiply-adds at full size. The key bias drops out of the softmax; the
  value bias passes through it, weights summing to 1, into the output bias.
- "projected": all layers' keys and values come from one product, since all read the same features.

Shapes: B images, L ViT tokens, E ViT width, N queries, C Q-Former width, H heads, d head width, M = B N.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from seed_fast.model import fast_attention, qformer
from seed_fast.model.cpu_products import Linear, computed_in_float32, product
from seed_fast.model.passes import AddNorm
from seed_fast.ops import attention

SEVERAL = 4  # from this number of images on the work counts more than the launches
NEVER = (False, False)

# The residual stream in float32, and the same values in the dtype of the next product.
Stream = tuple[Tensor, Tensor]


class SelfAttention:
    """norm(x + out(attention(x))), with one product for queries, keys and values."""

    def __init__(self, module: qformer.Attention, dtype: torch.dtype, count: int) -> None:
        parts = (module.query, module.key, module.value)
        self.heads, (width, device) = module.heads, (len(module.query.bias), module.query.bias.device)
        self.attention = fast_attention.SelfAttention(
            count, self.heads, width // self.heads, dtype, device, causal=module.causal
        )
        self.qkv = Linear(torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]), dtype)
        self.out = Linear(module.out.weight, module.out.bias, dtype)
        self.norm = AddNorm(module.norm, dtype, post_norm=True)

    def __call__(self, x_BNC: Tensor, read_BNC: Tensor) -> Stream:
        q, k, v = self.qkv(read_BNC).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.norm.after(x_BNC, self.out(self.attention(q, k, v).flatten(2)))


class AbsorbedCrossAttention:
    """Cross-attention whose keys and values are the features themselves.

    Torch's batched float32 products run in MKL alone. `by_image` computes the same sums in oneDNN instead, as one
    product per image or head; its two flags are for fewer than `SEVERAL` images, and for more.
    """

    def __init__(self, module: qformer.Attention, dtype: torch.dtype, by_image: tuple[bool, bool]) -> None:
        heads = module.heads
        query, key, value = (
            m.weight.detach().unflatten(0, (heads, -1)) for m in (module.query, module.key, module.value)
        )
        self.heads, self.width, self.by_image = heads, query.shape[1], by_image
        self.dtype = dtype
        self.computed = torch.float32 if computed_in_float32(key.device, dtype) else dtype
        self.query = Linear(module.query.weight, module.query.bias, dtype)
        self.key_HdE = self._rounded(key * self.width**-0.5)
        self.value_HEd = self._rounded(value.transpose(1, 2))
        bias = module.out.bias + module.out.weight @ module.value.bias
        self.out = Linear(module.out.weight, bias, dtype)
        self.norm = AddNorm(module.norm, dtype, post_norm=True)

    def absorb(self, x_BNC: Tensor) -> Tensor:
        """Return the queries multiplied with the key maps, ready to meet the features: [B, N * H, E], query-major."""
        batch, count, _ = x_BNC.shape
        q_MHd = self.query(x_BNC).unflatten(-1, (self.heads, self.width)).flatten(0, 1)
        through_keys = self._through_keys_by_head if self.by_image[batch >= SEVERAL] else self._through_keys
        return self._rounded(through_keys(q_MHd.to(self.computed))).view(batch, count * self.heads, -1)

    def __call__(self, x_BNC: Tensor, read_BNC: Tensor, features_BLE: Tensor, absorbed: Tensor | None = None) -> Stream:
        batch, count = len(features_BLE), x_BNC.shape[1]
        absorbed_BME = self.absorb(read_BNC) if absorbed is None else absorbed.expand(batch, -1, -1)
        attend = self._attend_by_image if self.by_image[batch >= SEVERAL] else self._attend
        heads_MHd = attend(absorbed_BME, features_BLE)
        return self.norm.after(x_BNC, self.out(heads_MHd.view(batch, count, -1)))

    def _rounded(self, x: Tensor) -> Tensor:
        """Round x to the plan's dtype, and return it in the dtype in which sums are computed."""
        return x.to(self.dtype).to(self.computed)

    def _through_keys(self, q_MHd: Tensor) -> Tensor:
        """Multiply each head's queries with its key map: [M, H, d] to [M, H, E]; M counts the queries of all images."""
        absorbed_MHE = q_MHd.new_empty(len(q_MHd), self.heads, self.key_HdE.shape[2])
        torch.bmm(q_MHd.transpose(0, 1), self.key_HdE, out=absorbed_MHE.transpose(0, 1))
        return absorbed_MHE

    def _through_keys_by_head(self, q_MHd: Tensor) -> Tensor:
        """Compute the same as `_through_keys`, as one product per head."""
        per_head = [product(q_Md, key_dE.t()) for q_Md, key_dE in zip(q_MHd.unbind(1), self.key_HdE, strict=True)]
        return torch.stack(per_head, dim=1)

    def _attend(self, absorbed_BME: Tensor, features_BLE: Tensor) -> Tensor:
        """Return the heads' outputs [M, H, d]."""
        scores_BML = torch.bmm(absorbed_BME, features_BLE.transpose(1, 2))
        weights_BML = self._rounded(scores_BML.softmax(-1, dtype=torch.float32))
        seen_MHE = torch.bmm(weights_BML, features_BLE).flatten(0, 1).unflatten(0, (-1, self.heads))
        seen_MHE = self._rounded(seen_MHE)
        heads_MHd = seen_MHE.new_empty(len(seen_MHE), self.heads, self.width)
        torch.bmm(seen_MHE.transpose(0, 1), self.value_HEd, out=heads_MHd.transpose(0, 1))
        return heads_MHd

    def _attend_by_image(self, absorbed_BME: Tensor, features_BLE: Tensor) -> Tensor:
        """Compute the same as `_attend`, as products of one image each, and then of one head each."""
        seen = []  # [N, H, E] of each image
        for absorbed_ME, features_LE in zip(absorbed_BME, features_BLE, strict=True):
            weights_ML = self._rounded(product(absorbed_ME, features_LE).softmax(-1))
            seen.append(self._rounded(product(weights_ML, features_LE.t())).unflatten(0, (-1, self.heads)))
        per_head = [
            product(torch.cat([seen_NHE[:, head] for seen_NHE in seen]), value_Ed.t())
            for head, value_Ed in enumerate(self.value_HEd)
        ]
        return torch.stack(per_head, dim=1)


class ProjectedCrossAttention:
    """Cross-attention over keys and values that come from one product for all layers."""

    def __init__(self, module: qformer.Attention, dtype: torch.dtype) -> None:
        self.heads = module.heads
        self.query = Linear(module.query.weight, module.query.bias, dtype)
        self.out = Linear(module.out.weight, module.out.bias, dtype)
        self.norm = AddNorm(module.norm, dtype, post_norm=True)

    def __call__(
        self, x_BNC: Tensor, read_BNC: Tensor, key_value_BLHd: tuple[Tensor, Tensor], absorbed: Tensor | None = None
    ) -> Stream:
        q_BNHd = self.query(read_BNC).unflatten(-1, (self.heads, -1))
        key, value = key_value_BLHd
        attended = attention(q_BNHd.expand(len(key), -1, -1, -1), key, value).flatten(2)
        return self.norm.after(x_BNC, self.out(attended))


class FeedForward:
    """norm(x + down(GELU(up(x))))."""

    def __init__(self, module: qformer.FeedForward, dtype: torch.dtype) -> None:
        self.up = Linear(module.up.weight, module.up.bias, dtype, gelu=True)
        self.down = Linear(module.down.weight, module.down.bias, dtype)
        self.norm = AddNorm(module.norm, dtype, post_norm=True)

    def __call__(self, x_BNC: Tensor, read_BNC: Tensor) -> Stream:
        return self.norm.after(x_BNC, self.down(self.up(read_BNC)))


class FastQFormer:
    """Features [B, L, E] to causal embeddings [B, N, C] float32."""

    def __init__(
        self, module: qformer.QFormer, dtype: torch.dtype, *, absorbed: bool, by_image: tuple[bool, bool] = NEVER
    ) -> None:
        layers: list[Any] = list(module.layers)
        crosses: list[Any] = [layer.cross_attention for layer in layers]
        self.dtype, self.absorbed = dtype, absorbed
        self.widened = absorbed and computed_in_float32(module.query_tokens.device, dtype)

        def kind(cross: Any) -> Any:
            if absorbed:
                return AbsorbedCrossAttention(cross, dtype, by_image)
            return ProjectedCrossAttention(cross, dtype)

        # Constants: the output of layer 0's self-attention is the same for every image.
        queries = module.norm(module.query_tokens)
        self.start_1NC = layers[0].self_attention(queries, queries).detach().float()
        self.selves = [None, *(SelfAttention(layer.self_attention, dtype, queries.shape[1]) for layer in layers[1:])]
        self.crosses = [None if cross is None else kind(cross) for cross in crosses]
        self.ffns = [FeedForward(layer.ffn, dtype) for layer in layers]
        first: Any = self.crosses[0]
        self.start_absorbed_1ME = first.absorb(self.start_1NC) if absorbed else None
        # All layers read the same features, so one product computes the keys and values of all of them.
        if not absorbed:
            parts = [linear for cross in crosses if cross is not None for linear in (cross.key, cross.value)]
            self.heads = crosses[0].heads
            self.key_value = Linear(torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]), dtype)

    def __call__(self, features_BLE: Tensor) -> Tensor:
        if not len(features_BLE):
            return self.start_1NC[:0]
        features_BLE = features_BLE.to(self.dtype)
        if self.widened:
            features_BLE = features_BLE.float()
        sources = self._sources(features_BLE)
        x_BNC = read_BNC = self.start_1NC
        absorbed = self.start_absorbed_1ME
        for self_attention, cross_attention, ffn in zip(self.selves, self.crosses, self.ffns, strict=True):
            if self_attention is not None:
                x_BNC, read_BNC = self_attention(x_BNC, read_BNC)
            if cross_attention is not None:
                x_BNC, read_BNC = cross_attention(x_BNC, read_BNC, next(sources), absorbed)
                absorbed = None
            x_BNC, read_BNC = ffn(x_BNC, read_BNC)
        return x_BNC

    def _sources(self, features_BLE: Tensor) -> Iterator[Any]:
        """Yield what each cross-attention reads: the features, or its own keys and values [B, L, H, d]."""
        if self.absorbed:
            return itertools.repeat(features_BLE)
        made = self.key_value(features_BLE).unflatten(-1, (-1, 2, self.heads, self.start_1NC.shape[2] // self.heads))
        return (layer.unbind(2) for layer in made.unbind(2))
