"""Faster forward passes for peft's LoRA layers and trainable embedding rows, with the same parameters and results.

peft's layers keep their parameters, their state dict and their names; only `forward` is replaced, and only while they
train with one plain adapter. In every other state (merged, disabled, several adapters) peft's own runs.

    y = x W^T + b + scaling (m * x) A^T B^T        m: dropout, 0 or 1 / keep

W is frozen, so nothing is kept for its gradient. Kept are x (once for all layers that share it), m as one byte per
number, and (m * x) A^T, which is only as wide as the adapter's rank. peft keeps m * x, in float32, for each layer.

peft writes the trained rows into a copy of the whole embedding, for the input and for the output, and the gradient is
computed for all rows. Here only trained rows are touched.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as PeftLinear
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import Tensor, nn

from seed_fast.lm.matmul import linear, times

ADAPTER = "default"  # peft's name of an only adapter


class _LoraLinear(torch.autograd.Function):
    """A linear layer and its LoRA. Shapes: x [T, I], weight [O, I], a [R, I], b [O, R]; returns [T, O]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        dropout: float,
        scale: float,
    ) -> Tensor:
        kept, share = None, 1.0
        if dropout and x.device.type == "cuda":  # one kernel draws the mask and multiplies, also by 1 / share
            dropped, kept = torch.native_dropout(x, dropout, True)
            share = 1 - dropout
            inner = times(dropped, a.to(x.dtype)).mul_(share)
        else:
            if dropout:
                kept, share = keep_mask(x.shape, dropout, x.device)
            inner = times(x if kept is None else x * kept, a.to(x.dtype))
        # The mask's factor 1 / share goes into the scale.
        scale /= share
        ctx.save_for_backward(x, weight, a, b, kept, inner)
        ctx.scale = scale
        return linear(x, weight, bias).addmm_(inner, b.to(x.dtype).T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, kept, inner = ctx.saved_tensors
        dropped = x if kept is None else x * kept
        d_inner = times(gradient, b.to(x.dtype).T).mul_(ctx.scale)
        d_b = times(gradient.T, inner.T).to(b.dtype).mul_(ctx.scale)
        d_a = times(d_inner.T, dropped.T).to(a.dtype)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = times(gradient, weight.T)
            if kept is None:
                d_x.addmm_(d_inner, a.to(x.dtype))
            else:
                d_x += (d_inner @ a.to(x.dtype)).mul_(kept)
        return d_x, None, None, d_a, d_b, None, None


def keep_mask(shape: torch.Size, dropout: float, device: torch.device) -> tuple[Tensor, float]:
    """Draw a mask that is True with a probability of 1 - dropout. Returns it and that probability exactly.

    A number takes 16 random bits, and a random int64 holds four of them: a quarter of the random generator's work,
    which is most of what dropout costs. The probability is rounded to a multiple of 2**-16.
    """
    threshold = round(dropout * 2**16)
    count = shape.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=device).random_(-(2**63), None)
    kept = bits.view(torch.int16)[:count].view(shape) >= threshold - 2**15
    return kept, 1 - threshold / 2**16


class LoraLinear(PeftLinear):
    """peft's LoRA layer, with a faster forward pass for one plain adapter."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map x [..., I] to [..., O], in the dtype of the frozen weight."""
        if args or kwargs or self.disable_adapters or self.merged or self.active_adapters != [ADAPTER]:
            return super().forward(x, *args, **kwargs)
        base: Any = self.base_layer
        dropout = self.lora_dropout[ADAPTER]
        flat = x.reshape(-1, x.shape[-1]).to(base.weight.dtype)
        share = dropout.p if self.training and isinstance(dropout, nn.Dropout) else 0.0
        a, b = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
        out = _LoraLinear.apply(flat, base.weight, base.bias, a, b, share, self.scaling[ADAPTER])
        return out.view(*x.shape[:-1], -1)


class TokenRows(TrainableTokensLayer):
    """peft's embedding (or output head) whose trained rows have consecutive ids."""

    def _learned(self) -> tuple[int, Tensor]:
        """Return the first trained id and the trained rows [n, D]."""
        return self.token_indices[ADAPTER][0], self.trainable_tokens_delta[ADAPTER]

    def parts(self) -> list[Tensor]:
        """Return the matrix in parts, in the order of its rows: frozen, trained, frozen. Empty parts are left out."""
        first, learned = self._learned()
        base: Any = self.base_layer
        weight = base.weight.detach()
        parts = [weight[:first], learned, weight[first + len(learned) :]]
        return [part for part in parts if len(part)]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map ids [...] to rows [..., D]; an output head runs peft's forward."""
        base = self.base_layer
        is_alone = self.active_adapters == [ADAPTER] and not self.disable_adapters and not self.merged
        if not isinstance(base, nn.Embedding) or not is_alone:
            return super().forward(x, *args, **kwargs)
        first, learned = self._learned()
        return embed_parts(x, base.weight, first, learned)


def embed_parts(ids: Tensor, frozen: Tensor, first: int, learned: Tensor) -> Tensor:
    """Look up ids [...] in `frozen` [V, D], and ids first..first + n - 1 in `learned` [n, D] instead.

    The result has the dtype of `frozen`, and only `learned` gets a gradient.
    """
    rows = F.embedding(ids, frozen.detach())
    is_learned = (ids >= first) & (ids < first + len(learned))
    own = F.embedding(ids[is_learned] - first, learned).to(frozen.dtype)
    return rows.index_put((is_learned,), own)


def use_fast_layers(model: nn.Module) -> int:
    """Give the plain LoRA and embedding layers of a peft model the forward passes of this file. Returns their number.

    Nothing else about them changes. Layers of other kinds (DoRA, quantised weights, a bias on B) stay peft's.
    """
    changed = 0
    for module in model.modules():
        if type(module) is PeftLinear and _is_plain(module):
            module.__class__ = LoraLinear
        elif type(module) is TrainableTokensLayer and _is_range(module.token_indices.get(ADAPTER, [])):
            module.__class__ = TokenRows
        else:
            continue
        changed += 1
    return changed


def _is_plain(layer: PeftLinear) -> bool:
    """True if this is one LoRA without variants on a frozen `nn.Linear`."""
    return (
        type(layer.base_layer) is nn.Linear
        and list(layer.lora_A) == [ADAPTER]
        and not layer.lora_variant
        and not layer.fan_in_fan_out
        and layer.lora_B[ADAPTER].bias is None
        and not layer.base_layer.weight.requires_grad
    )


def _is_range(indices: list[int]) -> bool:
    """True if the indices are consecutive, and not none."""
    return bool(indices) and list(indices) == list(range(indices[0], indices[0] + len(indices)))
