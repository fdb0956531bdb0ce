"""Matrix products of the inference plan on a CPU, and which library makes them.

Torch's own choice for float32 is MKL, which doesn't use AVX-512 on every processor that has it; oneDNN does, is slower
on others, and can apply GELU (the exact one) while a result is still in registers. So the first plan on a machine
measures them, in a second or two, for six kinds of products: by small or large weights, and by few, some or many rows.
What isn't faster than torch's own choice by a margin isn't taken. `calibration` keeps the answer; SEED_FAST_PRODUCTS
fixes it.

oneDNN's kernels read weights in blocks. A weight that is a copy anyway (joined, or of another dtype) may be stored that
way; one that can be shared with the modules stays as it is and is put into blocks in every call: the gain would be
some percent, the price holding a ViT-g twice.

Half precision doesn't depend on such a measurement, since rounding would: it runs in oneDNN, with weights in blocks
where they are copies. Where the processor has no instructions for it, which makes it several times slower than float32,
the products are computed in float32: weights stay in half precision and are widened one at a time, inputs and results
are rounded to half precision.

Shapes: M rows, K summed, N columns.
"""

from __future__ import annotations

import functools
import logging
import platform
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seed_fast import _env
from seed_fast.model import calibration
from seed_fast.model.passes import fused_on
from seed_fast.ops import bias_gelu

logger = logging.getLogger(__name__)

PROCESSORS = ("x86_64", "AMD64")  # elsewhere torch's own choice stands: nothing was measured
HALF = (torch.bfloat16, torch.float16)
MARGIN = 1.03  # gain that a library must have over torch's own choice
SLOW = 2.0  # times that half precision takes, of float32's, from which on float32 computes it
SECONDS = 0.3  # to measure one kind of products
gelu_ = torch.ops.aten.gelu_  # F.gelu in place: fresh memory for a hidden layer costs a CPU more than the GELU


class Route(NamedTuple):
    """How a product is made."""

    onednn: bool
    blocked: bool = False  # the weight lies in oneDNN's blocks
    fused: bool = False  # oneDNN applies GELU

    @property
    def name(self) -> str:
        """As SEED_FAST_PRODUCTS has it."""
        return next(name for name, route in ROUTES.items() if route == self)


MKL = Route(onednn=False)
ROUTES = {
    "mkl": MKL,
    "onednn": Route(True),
    "onednn+gelu": Route(True, fused=True),
    "onednn-blocked": Route(True, blocked=True),
    "onednn-blocked+gelu": Route(True, blocked=True, fused=True),
}
SETTINGS = (*ROUTES, "float32", "measure")

# Kinds of products. Fewer rows than FEW: one image's queries; fewer than MANY: one image's tokens.
FEW, MANY = 128, 1000
LARGE = 1 << 18  # elements of a weight
ROWS = ("few", "some", "many")
SAMPLES = {  # M, K, N
    "small": {"few": (64, 128, 384), "some": (512, 128, 512), "many": (4096, 128, 512)},
    "large": {"few": (32, 768, 3072), "some": (257, 1408, 1408), "many": (1024, 1024, 1024)},
}
_scratch = threading.local()


def setting() -> str:
    """The value of SEED_FAST_PRODUCTS; "" where it isn't set.

    Raises:
        ValueError: no such choice.
    """
    name = _env.get("SEED_FAST_PRODUCTS").strip()
    if name and name not in SETTINGS:
        raise ValueError(f"SEED_FAST_PRODUCTS must be one of {', '.join(SETTINGS)}, got {name!r}")
    return name


def onednn_takes(device: torch.device, dtype: torch.dtype) -> bool:
    """True if oneDNN can multiply this dtype here; `torch.backends.mkldnn.flags(enabled=False)` says no."""
    if device.type != "cpu" or platform.machine() not in PROCESSORS:
        return False
    if not torch.backends.mkldnn.is_available() or not torch._C._get_mkldnn_enabled():
        return False
    ops = torch.ops.mkldnn
    if not hasattr(ops, "_linear_pointwise") or not hasattr(ops, "_reorder_linear_weight"):
        return False
    if dtype == torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def float32_gains() -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """What this machine makes of float32 products; measured if it isn't known.

    Returns:
        {"small" | "large" weights: {"few" | "some" | "many" rows: {"gain": {route: factor over torch's own choice},
        "transposed": the same for a matrix [K, N], "gelu": where GELU follows, "gflops": {route: rate}}}}.
    """
    return calibration.answer("float32 products", _measure_float32, _is_gains, again=setting() == "measure")


def _is_gains(found: Any) -> bool:
    try:
        return all(
            float(found[size][rows][part][route]) > 0
            for size, of in SAMPLES.items()
            for rows in of
            for part, names in PARTS.items()
            for route in names
        )
    except (KeyError, TypeError, ValueError):
        return False


def _plain() -> tuple[str, ...]:
    return tuple(name for name, route in ROUTES.items() if not route.fused)


PARTS = {"gain": _plain(), "transposed": ("mkl", "onednn"), "gelu": tuple(ROUTES), "gflops": tuple(ROUTES)}


@torch.no_grad()
def _measure_float32() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    table: dict[str, Any] = {}
    for size, shapes in SAMPLES.items():
        for rows, (m, k, n) in shapes.items():
            x, weight, bias = (torch.randn(of, generator=generator) for of in ((m, k), (n, k), (n,)))
            shared, blocked = nn.Parameter(weight), blocks(weight)
            calls: dict[str, Callable[[], object]] = {}
            for name, route in ROUTES.items():
                used = blocked if route.blocked else shared
                calls[name] = partial(run, route, x, used, bias, gelu=True)
                if not route.fused:
                    calls[f"{name}, no GELU"] = partial(run, route, x, used, bias, gelu=False)
            with_gelu, gelu_gains = calibration.medians({name: calls[name] for name in ROUTES}, "mkl", SECONDS / 3)
            plain, gains = calibration.medians(
                {name: calls[f"{name}, no GELU"] for name in _plain()}, "mkl", SECONDS / 3
            )
            columns = torch.randn(k, n, generator=generator)
            turned = {"mkl": partial(torch.mm, x, columns), "onednn": partial(product, x, columns.t())}
            _, turned_gains = calibration.medians(turned, "mkl", SECONDS / 3)
            seconds = with_gelu | plain
            table.setdefault(size, {})[rows] = {
                "gain": {name: round(gain, 3) for name, gain in gains.items()},
                "transposed": {name: round(gain, 3) for name, gain in turned_gains.items()},
                "gelu": {name: round(gain, 3) for name, gain in gelu_gains.items()},
                "gflops": {name: round(2 * m * k * n / taken / 1e9, 1) for name, taken in seconds.items()},
            }
    return table


def choices(summed: int, columns: int, *, gelu: bool = False, shared: bool = True) -> dict[str, Route]:
    """Routes of float32 products with a weight [N, K], where oneDNN can run, by number of rows.

    Args:
        summed: K.
        columns: N.
        gelu: GELU follows.
        shared: the weight stays as it is; otherwise it may be put into blocks, for every number of rows or for none.

    Returns:
        {"few" | "some" | "many": route}.
    """
    name = setting()
    if name in ROUTES:
        return dict.fromkeys(ROWS, ROUTES[name])
    table = float32_gains()["large" if summed * columns >= LARGE else "small"]
    gains = {rows: table[rows]["gelu" if gelu else "gain"] for rows in ROWS}
    best = {rows: max(found.values()) for rows, found in gains.items()}
    if not shared:
        for candidate in (name for name in gains["few"] if ROUTES[name].blocked):
            everywhere = all(gains[rows][candidate] * MARGIN >= best[rows] for rows in ROWS)
            if everywhere and all(gains[rows][candidate] >= MARGIN for rows in ROWS):
                return dict.fromkeys(ROWS, ROUTES[candidate])
    return {rows: ROUTES[_fastest(found)] for rows, found in gains.items()}


def _fastest(gains: dict[str, float]) -> str:
    name = max((name for name in gains if not ROUTES[name].blocked), key=gains.__getitem__)
    return name if gains[name] >= MARGIN else "mkl"


def known_choices(measured: dict[str, Any]) -> dict[str, str]:
    """{kind of product: library, and that with GELU where it is another} by the float32 answer among `measured`."""
    table, found = measured.get("float32 products"), {}
    if table and _is_gains(table):
        for size, of in table.items():
            for rows in ROWS:
                plain, gelu = (_fastest(of[rows][part]) for part in ("gain", "gelu"))
                found[f"{size} weights, {rows} rows"] = plain if plain == gelu else f"{plain}; with GELU {gelu}"
    return found


def kind_of(rows: int) -> str:
    """ "few", "some" or "many"."""
    return "few" if rows < FEW else "some" if rows < MANY else "many"


def onednn_is_faster(
    rows: int, summed: int, columns: int, device: torch.device, dtype: torch.dtype, *, transposed: bool = False
) -> bool:
    """True if `product` of these sizes is to run in oneDNN; where not, torch's own product is to be taken.

    Args:
        rows: M.
        summed: K.
        columns: N.
        device: where.
        dtype: of the matrices.
        transposed: the second matrix is a transposed view, which costs oneDNN more on some processors.
    """
    if not onednn_takes(device, dtype):
        return False
    if dtype != torch.float32 or setting() in ROUTES:
        return setting() != "mkl"
    if transposed:
        size = "large" if summed * columns >= LARGE else "small"
        return ROUTES[_fastest(float32_gains()[size][kind_of(rows)]["transposed"])].onednn
    return choices(summed, columns)[kind_of(rows)].onednn


def slowdown(dtype: torch.dtype) -> float:
    """Time of a product in half precision on this CPU, as a multiple of float32's; measured if it isn't known."""
    name = str(dtype).removeprefix("torch.")

    def measure() -> dict[str, Any]:
        x, weight = torch.randn(128, 1024), torch.randn(1024, 1024)
        half = x.to(dtype), weight.to(dtype)
        with torch.no_grad():
            calls = {name: lambda: F.linear(*half), "float32": lambda: F.linear(x, weight)}
            _, gains = calibration.medians(calls, name, 0.2)
        return {"times float32": round(gains["float32"], 2)}

    def is_answer(found: Any) -> bool:
        value = found.get("times float32")
        return isinstance(value, (int, float)) and value > 0

    found = calibration.answer(f"{name} products", measure, is_answer, again=setting() == "measure")
    return float(found["times float32"])


def computed_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """True if products of this dtype are to be computed in float32, for want of instructions."""
    if device.type != "cpu" or dtype not in HALF:
        return False
    name = setting()
    if name in ("", "measure"):
        return not _has_instructions(dtype) or slowdown(dtype) > SLOW
    return name == "float32"


def _has_instructions(dtype: torch.dtype) -> bool:
    """False where oneDNN says that it can't take this dtype, which needs no measurement."""
    if platform.machine() not in PROCESSORS or not torch.backends.mkldnn.is_available():
        return True
    name = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    return bool(getattr(torch.ops.mkldnn, name, lambda: True)())


PLAN_ADVICE = "its products are computed in float32 from inputs rounded to it, so float32 is as fast, and exact"
ADVICE = "use float32, or tok.fast(), which computes its products in float32"
TRAINING_ADVICE = "train in float32"


def warn_of_slow_half(device: torch.device, dtype: torch.dtype, advice: str = ADVICE) -> None:
    """Say, once per dtype and advice, that half precision is slow on this CPU, if it is."""
    if device.type == "cpu" and dtype in HALF:
        _warn_once(dtype, advice)


@functools.cache
def _warn_once(dtype: torch.dtype, advice: str) -> None:
    times, name = slowdown(dtype), str(dtype).removeprefix("torch.")
    if times > SLOW or not _has_instructions(dtype):
        logger.warning(
            "%s takes %.1f times as long as float32 on this CPU, which has no instructions for it: %s",
            name,
            times,
            advice,
        )


def describe(device: torch.device, dtype: torch.dtype) -> str:
    """The name of what a plan's products run in: "measured", a value of SEED_FAST_PRODUCTS, or on a GPU "torch".

    In half precision it says how results were rounded; as SEED_FAST_PRODUCTS it gives them again.
    """
    if device.type != "cpu":
        return "torch"
    if computed_in_float32(device, dtype):
        return "float32"
    if not onednn_takes(device, dtype):
        return "mkl"
    name = setting()
    if name in ROUTES:
        return name
    return "measured" if dtype == torch.float32 else "onednn-blocked+gelu"


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """activation(x W^T + b) by oneDNN; activation is "none" or "gelu"."""
    algorithm = "none" if activation == "gelu" else None  # the other one is "tanh"
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)
    return out


def blocks(weight: Tensor) -> Tensor:
    """A weight in oneDNN's blocks."""
    out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return out


def run(route: Route, x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool) -> Tensor:
    """x W^T + b, and GELU of it, by a route that the weight lies right for."""
    if route.onednn:
        if gelu and route.fused:
            return _linear(x, weight, bias, "gelu")
        out = _linear(x, weight, bias, "none")
    else:
        out = F.linear(x, weight, bias)
    return gelu_(out) if gelu else out


class Linear:
    """x W^T + b in one dtype, whatever x is; with `gelu`, GELU of that."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, *, gelu: bool = False) -> None:
        shared = isinstance(weight, nn.Parameter) and weight.dtype == dtype
        self.weight, self.bias = weight.detach().to(dtype), bias.detach().to(dtype)
        self.dtype, self.gelu, device = dtype, gelu, weight.device
        self.fused = gelu and fused_on(device)
        self.columns, self.summed = weight.shape
        self.widened = computed_in_float32(device, dtype)
        self.routes = dict.fromkeys(ROWS, MKL)
        if self.widened:
            self.bias = self.bias.float()
            if onednn_takes(device, torch.float32):
                self.routes = choices(self.summed, self.columns, gelu=gelu)
        elif onednn_takes(device, dtype):
            if dtype == torch.float32:
                self.routes = choices(self.summed, self.columns, gelu=gelu, shared=shared)
            elif setting() in ROUTES:
                self.routes = dict.fromkeys(ROWS, ROUTES[setting()])
            else:
                self.routes = dict.fromkeys(ROWS, Route(True, blocked=not shared, fused=True))
            if self.routes["few"].blocked:
                self.weight = blocks(self.weight)
        self._few, self._some, self._many = self.routes.values()

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        rows = x.numel() // self.summed
        route = self._few if rows < FEW else self._some if rows < MANY else self._many
        if self.widened:
            return run(route, x.float(), _wide(self.weight), self.bias, gelu=self.gelu).to(self.dtype)
        if self.fused:
            return bias_gelu(run(route, x, self.weight, None, gelu=False), self.bias, inplace=True)
        return run(route, x, self.weight, self.bias, gelu=self.gelu)


def _wide(weight: Tensor) -> Tensor:
    """A weight in float32, in memory that the next one overwrites: fresh memory costs more than the widening."""
    room: Tensor | None = getattr(_scratch, "room", None)
    if room is None or room.numel() < weight.numel():
        with torch.inference_mode(False):
            room = _scratch.room = torch.empty(weight.numel())
    return room[: weight.numel()].view(weight.shape).copy_(weight)


def product(x_MK: Tensor, y_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x y^T + b by oneDNN: [M, N], contiguous; for a dtype that `onednn_takes`. `y_NK` may be a transposed view."""
    return _linear(x_MK, y_NK, bias_N, "none")
