"""Matrix products of the inference plan on a CPU, and the choice of the library that computes them.

Torch's own choice for float32 is MKL, which doesn't use AVX-512 on every processor that has it. oneDNN does, is slower
on some others, and can apply the exact GELU while a result is still in registers. So the first plan on a machine times
both, in a second or two, for six kinds of products: small or large weights, and few, some or many rows. A library is
taken instead of torch's choice only if it is faster by a margin. `calibration` keeps the answer, and SEED_FAST_PRODUCTS
overrides it.

oneDNN's kernels read weights in blocks. A weight that is a copy anyway (joined, or of another dtype) may be stored in
blocks. A weight that can be shared with the modules stays as it is, and oneDNN rearranges it in every call: storing it
in blocks would gain some percent, and would hold a ViT-g twice.

Half precision doesn't depend on such a measurement, because rounding would: it runs in oneDNN, with weights in blocks
where they are copies. On a processor without instructions for it half precision is several times slower than float32.
There the products are computed in float32: weights stay in half precision and are widened one at a time, and inputs and
results are rounded to half precision.

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

PROCESSORS = ("x86_64", "AMD64")  # on others torch's own choice stands: oneDNN was not measured there
HALF = (torch.bfloat16, torch.float16)
MARGIN = 1.03  # a library is taken if it is faster than torch's own choice by this factor
SLOW = 2.0  # half precision that takes this many times as long as float32 is computed in float32
SECONDS = 0.3  # time to measure one kind of products
gelu_ = torch.ops.aten.gelu_  # F.gelu in place: fresh memory for a hidden layer costs a CPU more than the GELU


class Route(NamedTuple):
    """How one product is computed: in which library, from which layout, and with GELU or without."""

    onednn: bool  # False: torch's own choice, MKL for float32
    blocked: bool = False  # the weight is stored in oneDNN's blocks
    fused: bool = False  # oneDNN applies GELU within the product

    @property
    def name(self) -> str:
        """The value of SEED_FAST_PRODUCTS that stands for this route."""
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

# Kinds of products by their rows M: below FEW, such as one image's queries; below MANY, such as one image's tokens.
FEW, MANY = 128, 1000
LARGE = 1 << 18  # a weight with at least so many elements is large
ROWS = ("few", "some", "many")
SAMPLES = {  # M, K, N
    "small": {"few": (64, 128, 384), "some": (512, 128, 512), "many": (4096, 128, 512)},
    "large": {"few": (32, 768, 3072), "some": (257, 1408, 1408), "many": (1024, 1024, 1024)},
}
_scratch = threading.local()


def setting() -> str:
    """Return the value of SEED_FAST_PRODUCTS, or "" where it isn't set.

    Raises:
        ValueError: the value is unknown.
    """
    name = _env.get("SEED_FAST_PRODUCTS").strip()
    if name and name not in SETTINGS:
        raise ValueError(f"SEED_FAST_PRODUCTS must be one of {', '.join(SETTINGS)}, got {name!r}")
    return name


def onednn_takes(device: torch.device, dtype: torch.dtype) -> bool:
    """Return True if oneDNN can multiply this dtype on this device and isn't switched off in torch."""
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
    """Return how fast this machine computes float32 products by each route; measure it where it isn't known yet.

    Returns:
        {"small" | "large" weights: {"few" | "some" | "many" rows: {"gain": {route: factor over torch's own choice},
        "transposed": the same for a matrix [K, N], "gelu": where GELU follows, "gflops": {route: rate}}}}.
    """
    return calibration.answer("float32 products", _measure_float32, _is_gains, again=setting() == "measure")


def _is_gains(found: Any) -> bool:
    """Return True if `found` has all numbers that `float32_gains` promises."""
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
    """Return the names of the routes without a fused GELU."""
    return tuple(name for name, route in ROUTES.items() if not route.fused)


PARTS = {"gain": _plain(), "transposed": ("mkl", "onednn"), "gelu": tuple(ROUTES), "gflops": tuple(ROUTES)}


@torch.no_grad()
def _measure_float32() -> dict[str, Any]:
    """Time every route on every kind of product; return what `float32_gains` does."""
    generator = torch.Generator().manual_seed(0)
    table: dict[str, Any] = {}
    for size, shapes in SAMPLES.items():
        for rows, (m, k, n) in shapes.items():
            x, weight, bias = (torch.randn(of, generator=generator) for of in ((m, k), (n, k), (n,)))
            shared, blocked = nn.Parameter(weight), blocks(weight)
            # Every route with GELU behind it; those without a fused GELU also without it.
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
            # A transposed second matrix, which oneDNN reads more slowly on some processors.
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
    """Choose the routes of float32 products with a weight [N, K], by number of rows, where oneDNN can run.

    Args:
        summed: K.
        columns: N.
        gelu: True if GELU follows.
        shared: True if the weight must stay as it is. Otherwise it may be stored in blocks, for every number of rows.

    Returns:
        {"few" | "some" | "many": route}.
    """
    name = setting()
    if name in ROUTES:
        return dict.fromkeys(ROWS, ROUTES[name])
    table = float32_gains()["large" if summed * columns >= LARGE else "small"]
    gains = {rows: table[rows]["gelu" if gelu else "gain"] for rows in ROWS}
    best = {rows: max(found.values()) for rows, found in gains.items()}
    # Blocks must be good for every number of rows, because the weight is stored once.
    if not shared:
        for candidate in (name for name in gains["few"] if ROUTES[name].blocked):
            everywhere = all(gains[rows][candidate] * MARGIN >= best[rows] for rows in ROWS)
            if everywhere and all(gains[rows][candidate] >= MARGIN for rows in ROWS):
                return dict.fromkeys(ROWS, ROUTES[candidate])
    return {rows: ROUTES[_fastest(found)] for rows, found in gains.items()}


def _fastest(gains: dict[str, float]) -> str:
    """Return the fastest route that reads plain weights; "mkl" where none is faster than it by `MARGIN`."""
    name = max((name for name in gains if not ROUTES[name].blocked), key=gains.__getitem__)
    return name if gains[name] >= MARGIN else "mkl"


def known_choices(measured: dict[str, Any]) -> dict[str, str]:
    """Summarise the float32 answer among `measured`, as `calibration.answers` returns it; for `seed-fast info`.

    Returns:
        {kind of product: route, and the route with GELU where that is another one}; empty where nothing is known.
    """
    table, found = measured.get("float32 products"), {}
    if table and _is_gains(table):
        for size, of in table.items():
            for rows in ROWS:
                plain, gelu = (_fastest(of[rows][part]) for part in ("gain", "gelu"))
                found[f"{size} weights, {rows} rows"] = plain if plain == gelu else f"{plain}; with GELU {gelu}"
    return found


def kind_of(rows: int) -> str:
    """Return the kind of a number of rows: "few", "some" or "many"."""
    return "few" if rows < FEW else "some" if rows < MANY else "many"


def onednn_is_faster(
    rows: int, summed: int, columns: int, device: torch.device, dtype: torch.dtype, *, transposed: bool = False
) -> bool:
    """Return True if `product` of these sizes should run in oneDNN, False if torch's own product should.

    Args:
        rows: M.
        summed: K.
        columns: N.
        device: device of the matrices.
        dtype: dtype of the matrices.
        transposed: True if the second matrix is a transposed view, which costs oneDNN more on some processors.
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
    """Return how many times as long as float32 a product in half precision takes on this CPU; measure if need be."""
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

    found = calibration.answer(f"{name} products", measure, is_answer, again=setting() == "measure", settled=True)
    return float(found["times float32"])


def computed_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Return True if products of this dtype are computed in float32, because the CPU lacks instructions for it."""
    if device.type != "cpu" or dtype not in HALF:
        return False
    name = setting()
    if name in ("", "measure"):
        return not _has_instructions(dtype) or slowdown(dtype) > SLOW
    return name == "float32"


def _has_instructions(dtype: torch.dtype) -> bool:
    """Return False where oneDNN reports that the CPU has no instructions for this dtype; nothing is measured."""
    if platform.machine() not in PROCESSORS or not torch.backends.mkldnn.is_available():
        return True
    name = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    return bool(getattr(torch.ops.mkldnn, name, lambda: True)())


PLAN_ADVICE = "its products are computed in float32 from inputs rounded to it, so float32 is as fast, and exact"
ADVICE = "use float32, or tok.fast(), which computes its products in float32"
TRAINING_ADVICE = "train in float32"


def warn_of_slow_half(device: torch.device, dtype: torch.dtype, advice: str = ADVICE) -> None:
    """Log a warning, once per dtype and advice, if half precision is slow on this CPU; `advice` ends the message."""
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
    """Name the library of a plan's products: "measured", a value of SEED_FAST_PRODUCTS, or on a GPU "torch".

    In half precision the name tells how results are rounded; with SEED_FAST_PRODUCTS set to it, that is repeated.
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
    """Return activation(x W^T + b), computed by oneDNN; activation is "none" or "gelu"."""
    algorithm = "none" if activation == "gelu" else None  # "none": the exact GELU, not "tanh"
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)
    return out


def blocks(weight: Tensor) -> Tensor:
    """Return a weight in oneDNN's blocks."""
    out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return out


def run(route: Route, x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool) -> Tensor:
    """Return x W^T + b, or its GELU, by a route; the weight must be in blocks if the route says so."""
    if route.onednn:
        if gelu and route.fused:
            return _linear(x, weight, bias, "gelu")
        out = _linear(x, weight, bias, "none")
    else:
        out = F.linear(x, weight, bias)
    return gelu_(out) if gelu else out


class Linear:
    """x W^T + b, or with `gelu` its GELU, computed in one dtype whatever the dtype of x."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, *, gelu: bool = False) -> None:
        # A parameter of this dtype is shared with the module; anything else is a copy, which may be stored in blocks.
        shared = isinstance(weight, nn.Parameter) and weight.dtype == dtype
        self.weight, self.bias = weight.detach().to(dtype), bias.detach().to(dtype)
        self.dtype, self.gelu, device = dtype, gelu, weight.device
        self.fused = gelu and fused_on(device)
        self.columns, self.summed = weight.shape
        # The route for each number of rows, decided now so that a call only looks it up.
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
    """Return a weight in float32, valid until the next call on this thread.

    The memory is used again, because allocating it anew would cost more than the conversion.
    """
    room: Tensor | None = getattr(_scratch, "room", None)
    if room is None or room.numel() < weight.numel():
        with torch.inference_mode(False):
            room = _scratch.room = torch.empty(weight.numel())
    return room[: weight.numel()].view(weight.shape).copy_(weight)


def product(x_MK: Tensor, y_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """Return x y^T + b [M, N], contiguous, computed by oneDNN, for a dtype that `onednn_takes`.

    `y_NK` may be a transposed view.
    """
    return _linear(x_MK, y_NK, bias_N, "none")
