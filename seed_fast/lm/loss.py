"""Cross-entropy of a large vocabulary without its logits: in chunks of positions, never [tokens, vocabulary] at once.

    loss = sum over positions i of  logsumexp_v(h_i . w_v) - h_i . w_{t_i}

The forward pass computes each chunk's probabilities, so it computes the gradients too, and keeps only these: of
h [N, D], and of the trainable rows w. In half precision the probabilities are rounded before the matrix products.
Those of a mean over N positions would be p / N, which float16 loses (1e-5 / 1e4), and a loss scale that comes later
can't bring it back: training stalls. So a scale is folded in before the rounding: `SCALE` * p is far from both ends of
float16 whatever the loss scale is. 1 / N and the loss scale itself are multiplied in the backward pass, in float32.

Shapes: N positions, V tokens of the vocabulary, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seed_fast.lm.matmul import add_times, times, times_into

SCALE = 64.0  # float16 then keeps probabilities down to 1e-9
CHUNK_BYTES = 64 << 20  # size of a chunk's logits in float32


def chunk_rows(vocabulary_size: int) -> int:
    """Return the number of positions per chunk, a multiple of 16."""
    return max(16, CHUNK_BYTES // (4 * vocabulary_size) // 16 * 16)


class _LinearCrossEntropy(torch.autograd.Function):
    """`linear_cross_entropy`; `wants` says which of hidden and weights need a gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, wants: tuple[bool, ...], *weights: Tensor) -> Tensor:
        wants_hidden, *wants_weights = wants
        dtype = hidden.dtype
        is_half = dtype in (torch.float16, torch.bfloat16)
        full = torch.promote_types(dtype, torch.float32)
        scale = SCALE if is_half else 1.0
        sizes = [len(weight) for weight in weights]
        casts = [weight.to(dtype) for weight in weights]
        vocabulary_size = sum(sizes)
        rows = max(1, min(len(hidden), chunk_rows(vocabulary_size)))
        logits = hidden.new_empty(rows, vocabulary_size)  # used again by every chunk
        exact = logits.to(full)  # the same tensor, unless in half precision
        loss = torch.zeros((), dtype=full, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weights = [
            torch.zeros(weight.shape, dtype=full, device=weight.device) if wanted else None
            for weight, wanted in zip(weights, wants_weights, strict=True)
        ]
        for begin in range(0, len(hidden), rows):
            # Logits of this chunk, their log-softmax, and the loss.
            h, t = hidden[begin : begin + rows], targets[begin : begin + rows, None]
            chunk, log_p = logits[: len(h)], exact[: len(h)]
            for part, weight in zip(chunk.split(sizes, dim=1), casts, strict=True):
                times_into(part, h, weight)
            torch.log_softmax(chunk, 1, dtype=full, out=log_p)
            loss -= log_p.gather(1, t).sum()
            if not any(wants):
                continue
            # Gradient of the logits: the probabilities, minus 1 at the target.
            p = log_p.exp_().scatter_add_(1, t, torch.full_like(t, -1, dtype=full))
            if is_half:
                p = chunk.copy_(p.mul_(scale))
            # From it the gradients of the hidden states and of the trainable rows.
            parts = p.split(sizes, dim=1)
            if d_hidden is not None:
                out = times_into(d_hidden[begin : begin + rows], parts[0], casts[0].T)
                for part, weight in zip(parts[1:], casts[1:], strict=True):
                    add_times(out, part, weight.T)
            for part, gradient in zip(parts, d_weights, strict=True):
                if gradient is None:
                    continue
                if is_half:  # h / SCALE: a token at every position sums up to no more than |h|
                    gradient += times(part.T, (h / scale).T)
                else:
                    add_times(gradient, part.T, h.T)
        ctx.scale, ctx.wants_hidden = scale, wants_hidden
        ctx.dtypes = [weight.dtype for weight in weights]
        ctx.save_for_backward(*(each for each in (d_hidden, *d_weights) if each is not None))
        ctx.which = [gradient is not None for gradient in d_weights]
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        d_hidden = None
        if ctx.wants_hidden:
            d_hidden = next(saved)
            factor = (gradient / ctx.scale)[None]  # with a dimension, so that the product is float32
            d_hidden = (d_hidden * factor).to(d_hidden.dtype)
        d_weights = [
            (next(saved) * gradient).to(dtype) if known else None
            for known, dtype in zip(ctx.which, ctx.dtypes, strict=True)
        ]
        return d_hidden, None, None, *d_weights


def linear_cross_entropy(hidden: Tensor, weights: list[Tensor], targets: Tensor) -> Tensor:
    """Sum over positions the cross-entropy of `hidden @ cat(weights).T`.

    Args:
        hidden: [N, D], float32, float16 or bfloat16: the type of the matrix products. Softmax and sums are float32.
        weights: parts of the output matrix [V_i, D], in the order of the vocabulary; those that require a gradient
            get one. They may have another dtype than `hidden`.
        targets: [N] int64, in 0..V-1.

    Returns:
        Scalar, float32; 0 for no positions.

    Raises:
        ValueError: shapes don't fit.
    """
    width = hidden.shape[-1]
    if hidden.ndim != 2 or any(weight.ndim != 2 or weight.shape[1] != width for weight in weights):
        shapes = [list(weight.shape) for weight in weights]
        raise ValueError(
            f"linear_cross_entropy: weights must be [V, D] for hidden [N, D], got {shapes} for {list(hidden.shape)}"
        )
    if targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"linear_cross_entropy: targets must be [{len(hidden)}], one per position, got {list(targets.shape)}"
        )
    grad = torch.is_grad_enabled()
    wants = tuple(grad and each.requires_grad for each in (hidden, *weights))
    return _LinearCrossEntropy.apply(hidden, targets, wants, *weights)
