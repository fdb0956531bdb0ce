"""Choose the order of sums in the plan's cross-attention: "absorbed" or "projected" (see `fast_qformer`).

"auto" takes in float32 on a CPU the order that is faster there. That is measured on one layer, when the first plan of
such a model is made on a machine, and the answer is kept (`calibration`). In half precision and on a GPU "auto" takes
the order with fewer operations: there the two round differently, which changes some codes, so no measurement may
decide. "measured" times both whatever the dtype, and keeps the answer too.

Shapes: L ViT tokens, E ViT width, N queries, C Q-Former width, H heads.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from seed_fast.model import calibration
from seed_fast.model.cpu_products import Linear, computed_in_float32, onednn_takes, setting
from seed_fast.model.fast_qformer import (
    NEVER,
    SEVERAL,
    AbsorbedCrossAttention,
    FastQFormer,
    ProjectedCrossAttention,
)
from seed_fast.model.qformer import QFormer

FORMS = ("absorbed", "projected")
CHOICES = ("auto", "measured", *FORMS)
BATCHES = {"one": 1, "several": 8}  # images that are timed, on both sides of SEVERAL
SECONDS = 0.25  # time to measure each number of images
IMAGES_ON_A_GPU = 64  # so many that the time of launches doesn't matter
MARGIN = 1.05  # the form with more operations is taken if it is faster by this factor


def make_qformer(module: QFormer, dtype: torch.dtype, tokens: int, choice: str = "auto") -> FastQFormer:
    """Build the Q-Former of a plan.

    Args:
        module: the source of the weights.
        dtype: type of the products.
        tokens: L, the number of tokens in the features [B, L, E] that it will read.
        choice: one of `CHOICES`.

    Raises:
        ValueError: `choice` has an unknown value.
    """
    if choice not in CHOICES:
        names = ", ".join(map(repr, CHOICES[:-1]))
        raise ValueError(f"fast: cross_attention must be {names} or {CHOICES[-1]!r}, got {choice!r}")
    # How the absorbed form computes its sums: batched, or one product per image, where oneDNN is faster so.
    device = module.query_tokens.device
    fewer, by_image = _fewer_operations(module, tokens), NEVER
    on_cpu_in_float32 = device.type == "cpu" and (dtype == torch.float32 or computed_in_float32(device, dtype))
    if on_cpu_in_float32 and onednn_takes(device, torch.float32) and setting() in ("", "float32", "measure"):
        gains = _gains(module, torch.float32, tokens)
        by_image = (gains["one"]["by image"] >= MARGIN, gains["several"]["by image"] >= MARGIN)
    elif on_cpu_in_float32 and setting().startswith("onednn") and onednn_takes(device, torch.float32):
        by_image = (True, True)
    # Which form: by measurement, or by counting operations.
    if choice == "measured" or (choice == "auto" and dtype == torch.float32 and device.type == "cpu" and not setting()):
        choice = _faster(_gains(module, dtype, tokens), fewer)
    elif choice == "auto":
        choice = fewer
    return FastQFormer(module, dtype, absorbed=choice == "absorbed", by_image=by_image)


def _cross_attention(module: QFormer) -> Any:
    """Return the cross-attention of the first layer, which has one in every configuration."""
    layers: list[Any] = list(module.layers)
    return layers[0].cross_attention


def _fewer_operations(module: QFormer, tokens: int) -> str:
    """Return the form with fewer operations, by those products of one layer and image that differ between them."""
    cross, (_, queries, width) = _cross_attention(module), module.query_tokens.shape
    seen = cross.key.in_features
    absorbed = 2 * queries * seen * (cross.heads * tokens + width)  # scores and sums; through key and value maps
    projected = 2 * tokens * width * (seen + queries)  # keys and values; scores and sums
    return "absorbed" if absorbed <= projected else "projected"


def _faster(gains: dict[str, dict[str, float]], fewer: str) -> str:
    """Return the form that is faster over all batch sizes: `fewer`, unless the other one wins by more than `MARGIN`."""
    gain = 1.0  # of "projected" over "absorbed"
    for found in gains.values():
        gain *= (found["projected"] / max(1.0, found["by image"])) ** (1 / len(gains))
    if fewer == "absorbed":
        return "projected" if gain >= MARGIN else "absorbed"
    return "absorbed" if gain <= 1 / MARGIN else "projected"


def _gains(module: QFormer, dtype: torch.dtype, tokens: int) -> dict[str, dict[str, float]]:
    """Return how many times as fast as "absorbed" the other forms are; measure it where it isn't known yet.

    Returns:
        {"one" or "several" (images): {"by image" or "projected": factor}}.
    """
    device, cross = module.query_tokens.device, _cross_attention(module)
    _, queries, width = module.query_tokens.shape
    seen = cross.key.in_features
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    name = str(dtype).removeprefix("torch.")
    question = f"cross-attention in {name} on {where}: {queries} x {width}, {cross.heads} heads, to {tokens} x {seen}"

    def is_answer(found: Any) -> bool:
        try:
            return all(float(found[b][form]) > 0 for b in BATCHES for form in ("by image", "projected"))
        except (KeyError, TypeError, ValueError):
            return False

    return calibration.answer(
        question, partial(_measure, module, dtype, tokens), is_answer, again=setting() == "measure"
    )


@torch.no_grad()
def _measure(module: QFormer, dtype: torch.dtype, tokens: int) -> dict[str, Any]:
    """Time the forms on the cross-attention of one layer; return what `_gains` does."""
    device, cross = module.query_tokens.device, _cross_attention(module)
    _, queries, width = module.query_tokens.shape
    by_image = dtype == torch.float32 and onednn_takes(device, dtype)
    forms = {
        "absorbed": OneLayer(module, dtype, absorbed=True),
        "projected": OneLayer(module, dtype, absorbed=False),
        **({"by image": OneLayer(module, dtype, absorbed=True, by_image=True)} if by_image else {}),
    }
    found = {}
    for name, images in BATCHES.items():
        images = IMAGES_ON_A_GPU if device.type == "cuda" and images >= SEVERAL else images
        x = torch.randn(images, queries, width, device=device)
        features = torch.randn(images, tokens, cross.key.in_features, device=device, dtype=dtype)
        calls = {form: partial(call, x, features) for form, call in forms.items()}
        wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        _, gains = calibration.medians(calls, "absorbed", SECONDS, wait)
        found[name] = {"by image": round(gains.get("by image", 0.001), 3), "projected": round(gains["projected"], 3)}
    return found


class OneLayer:
    """The first layer's cross-attention in one form, including its share of work that all layers have in common."""

    def __init__(self, module: QFormer, dtype: torch.dtype, *, absorbed: bool, by_image: bool = False) -> None:
        cross = _cross_attention(module)
        self.absorbed = absorbed
        if absorbed:
            self.call: Any = AbsorbedCrossAttention(cross, dtype, (by_image, by_image))
            return
        self.call, self.heads = ProjectedCrossAttention(cross, dtype), cross.heads
        parts = (cross.key, cross.value)
        self.key_value = Linear(torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]), dtype)

    def __call__(self, x_BNC: Tensor, features_BLE: Tensor) -> Any:
        if self.absorbed:
            return self.call(x_BNC, x_BNC, features_BLE)
        key, value = self.key_value(features_BLE).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return self.call(x_BNC, x_BNC, (key, value))
