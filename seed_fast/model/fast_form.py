"""Which order of its sums the plan's cross-attention takes: "absorbed" or "projected" (see `fast_qformer`).

"auto" takes the one with fewer operations, so that a plan is the same on every start: in half precision the two orders
round differently, which changes some codes. On the CPU that we have it is the faster one at full size (`seed-fast bench
qformer` times both). "measured" times both now; it is for devices where that may not hold.

Shapes: L ViT tokens, E ViT width, N queries, C Q-Former width, H heads.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from seed_fast.model.fast_qformer import FastQFormer
from seed_fast.model.qformer import QFormer

FORMS = ("absorbed", "projected")
CHOICES = ("auto", "measured", *FORMS)
ROUNDS = 3
IMAGES = {"cpu": 4}
IMAGES_ELSEWHERE = 64  # enough that a GPU's time isn't that of launches
_measured: dict[tuple[object, ...], str] = {}


def make_qformer(module: QFormer, dtype: torch.dtype, tokens: int, choice: str = "auto") -> FastQFormer:
    """The Q-Former of a plan.

    Args:
        module: the source of the weights.
        dtype: type of the products.
        tokens: L, of which features will be [B, L, E].
        choice: one of `CHOICES`.

    Raises:
        ValueError: no such choice.
    """
    if choice not in CHOICES:
        names = ", ".join(map(repr, CHOICES[:-1]))
        raise ValueError(f"fast: cross_attention must be {names} or {CHOICES[-1]!r}, got {choice!r}")
    if choice == "auto":
        choice = _fewer_operations(module, tokens)
    elif choice == "measured":
        choice = _faster(module, dtype, tokens)
    return FastQFormer(module, dtype, absorbed=choice == "absorbed")


def _cross_attention(module: QFormer) -> Any:
    """Of the first layer, which has one in every configuration."""
    layers: list[Any] = list(module.layers)
    return layers[0].cross_attention


def _fewer_operations(module: QFormer, tokens: int) -> str:
    """Of the products of one layer and image that the two orders don't share."""
    cross, (_, queries, width) = _cross_attention(module), module.query_tokens.shape
    seen = cross.key.in_features
    absorbed = 2 * queries * seen * (cross.heads * tokens + width)  # scores and sums; through key and value maps
    projected = 2 * tokens * width * (seen + queries)  # keys and values; scores and sums
    return "absorbed" if absorbed <= projected else "projected"


def _faster(module: QFormer, dtype: torch.dtype, tokens: int) -> str:
    """The form whose fastest call is the fastest, once per process, device and kind of model."""
    device = module.query_tokens.device
    on_gpu = device.type == "cuda"
    machine = torch.cuda.get_device_name(device) if on_gpu else torch.get_num_threads()
    kind = (device.type, machine, dtype, tokens, *(tuple(p.shape) for p in module.parameters()))
    if kind not in _measured:
        width = _cross_attention(module).key.in_features
        images = IMAGES.get(device.type, IMAGES_ELSEWHERE)
        features = torch.randn(images, tokens, width, device=device, dtype=dtype)
        plans = {form: FastQFormer(module, dtype, absorbed=form == "absorbed") for form in FORMS}
        seconds: dict[str, list[float]] = {form: [] for form in FORMS}
        for _ in range(1 + ROUNDS):
            for form, plan in plans.items():
                seconds[form].append(_seconds(plan, features))
        _measured[kind] = min(FORMS, key=lambda form: min(seconds[form][1:]))  # the first call of each warms up
    return _measured[kind]


def _seconds(plan: FastQFormer, features: Tensor) -> float:
    wait = torch.cuda.synchronize if features.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    plan(features)
    wait()
    return time.perf_counter() - start
