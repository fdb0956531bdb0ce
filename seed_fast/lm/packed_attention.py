"""Attention within each sample of rows that hold several: no mask [T, T], no computation on padding.

The tokens of a batch, without padding, run through the model as one row [1, N]. Only attention has to know where
samples begin: it lays them out as [S, L] (S samples of at most L tokens), runs causal attention, and collects the
outputs again. Causal attention of a token never reaches what lies behind its sample, so no mask is needed. Samples of
similar length share a layout.

Both families of models call this through transformers' registry of attention functions.

Shapes: N tokens without padding, S samples, L tokens of the longest, H heads, K heads of keys and values, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seed_fast.ops import attention

HEAD_WIDTHS = range(16, 129, 8)  # that `seed_fast.ops.attention` takes
NAME = "seed_fast_packed"  # in transformers' registry


@dataclass(frozen=True)
class Layout:
    """Samples of similar length: token `tokens[i]` is at `places[i]` of a tensor [samples * length]."""

    tokens: Tensor | None  # None: all tokens, in order
    places: Tensor
    samples: int
    length: int


@dataclass(frozen=True)
class Packed:
    """Where the tokens of a batch [B, T] are, without its padding.

    Args:
        kept: [N] positions in the flattened batch that aren't padding, ascending.
        layouts: layouts that together hold every token once.
    """

    kept: Tensor
    layouts: list[Layout]

    @classmethod
    def of_segments(cls, segments: Tensor) -> Packed:
        """Compute it from segments [B, T], where 0 is padding and other numbers tell the samples of a row apart.

        Raises:
            ValueError: everything is padding.
        """
        rows = segments.cpu()
        kept = rows.flatten().nonzero().squeeze(1)
        if not len(kept):
            raise ValueError("segments: must have at least one token that is no padding, got none")
        # Where each sample begins, how long it is, and the place of each token in its sample.
        width = rows.shape[1]
        names = rows.flatten()[kept] + (kept // width) * (int(rows.max()) + 1)
        begins = torch.cat([torch.zeros(1, dtype=torch.int64), (names[1:] != names[:-1]).nonzero().squeeze(1) + 1])
        lengths = torch.diff(begins, append=torch.tensor([len(kept)]))
        sample = torch.repeat_interleave(torch.arange(len(begins)), lengths)  # [N]
        offset = torch.arange(len(kept)) - begins[sample]
        # Samples of one power of two of lengths share a layout, so less than half of it is empty.
        classes = torch.ceil(torch.log2(lengths.double())).long()
        device, layouts = segments.device, []
        for each in classes.unique().tolist():
            members = (classes == each).nonzero().squeeze(1)
            length = int(lengths[members].max())
            number = torch.full((len(begins),), -1)
            number[members] = torch.arange(len(members))
            tokens = (number[sample] >= 0).nonzero().squeeze(1)
            places = number[sample[tokens]] * length + offset[tokens]
            whole = None if len(tokens) == len(kept) else tokens.to(device)
            layouts.append(Layout(whole, places.to(device), len(members), length))
        return cls(kept.to(device), layouts)


class _Spread(torch.autograd.Function):
    """Write rows x [n, ...] to `places` of zeros [size, ...]; the gradient is read from the same places."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(places)
        return x.new_zeros(size, *x.shape[1:]).index_copy_(0, places, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradient.index_select(0, places), None, None


class _Collect(torch.autograd.Function):
    """Read the rows of x [size, ...] at `places`; the inverse of `_Spread`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.size, *gradient.shape[1:]).index_copy_(0, places, gradient), None


def packed_attention(q: Tensor, k: Tensor, v: Tensor, packed: Packed, *, scale: float, dropout: float = 0.0) -> Tensor:
    """Compute causal attention within each sample.

    Args:
        q: [N, H, D].
        k: [N, K, D]; H is a multiple of K.
        v: [N, K, D].
        packed: which sample each token belongs to.
        scale: factor of the scores.
        dropout: probability with which attention weights are dropped.

    Returns:
        [N, H, D].
    """
    outputs = []
    for layout in packed.layouts:
        parts = []
        for x in (q, k, v):
            x = x if layout.tokens is None else _Collect.apply(x, layout.tokens)
            x = _Spread.apply(x, layout.places, layout.samples * layout.length)
            x = x.view(layout.samples, layout.length, *x.shape[1:]).transpose(1, 2)
            parts.append(x if x.shape[1] == q.shape[1] else x.repeat_interleave(q.shape[1] // x.shape[1], dim=1))
        out = _causal(*parts, scale=scale, dropout=dropout)
        out = _Collect.apply(out.transpose(1, 2).reshape(layout.samples * layout.length, *q.shape[1:]), layout.places)
        if layout.tokens is None:
            return out
        outputs.append(_Spread.apply(out, layout.tokens, len(q)))
    return torch.stack(outputs).sum(0) if len(outputs) > 2 else sum(outputs[1:], outputs[0])


def _causal(q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: float) -> Tensor:
    """Compute causal attention of tensors [S, H, L, D]."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and not dropout and q.shape[-1] in HEAD_WIDTHS:
        # torch's fused kernel takes several times as long in this type, most of it for the gradient.
        out = attention(*(x.transpose(1, 2) for x in (q, k, v)), causal=True, scale=scale)
        return out.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scale)


def register() -> str:
    """Register `packed_attention` in transformers, whose models then take `packed=Packed(...)`. Returns its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _of_transformers)
    return NAME


def _of_transformers(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: Packed,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Run `packed_attention` for transformers: query [1, H, N, D], key and value [1, K, N, D] to [1, N, H, D]."""
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    return packed_attention(q, k, v, packed, scale=scaling, dropout=dropout).unsqueeze(0), None
