"""The benchmarks encode (pixels to codes) and qformer (its part after the ViT): the official computation, and compiled.

The official computation is that of the official models/seed_qformer/qformer_quantizer.py on our plain modules: eager,
float32 on a CPU and float16 on a GPU, with the distances to all entries in a matrix. Weights are random; the codebook
is drawn around the embeddings that they give, because the official initial one gives all images the same few codes.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.e2e.truth import CHECKED, Truth, code_errors, float64_codes
from benchmarks.ops.nearest_code import official_lookup
from benchmarks.providers import Bar, Benchmark, Call, Case, Inputs, Provider, environment
from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.profile.cost import costs

OFFICIAL, COMPILED, PLAIN = "official", "official, torch.compile", "seed_fast, plain"
TINY = "seed-tiny"
UNFUSED = ", passes not fused"  # docs/fast.md has the arithmetic of it
FAST = {dtype: f"seed_fast, fast, {dtype}" for dtype in ("float32", "bfloat16", "float16")}
# Images of a batch -> rounds, for encoding at full size on a CPU, where a call takes seconds.
ROUNDS = {1: 3, 8: 2}
COMPILE_SECONDS = 120
Encode = Callable[[Any, Tensor], Tensor]


class Model:
    """The tokenizer of a case with random weights, and its variants, each made once for all providers.

    Args:
        preset: name of the preset whose sizes it has.
        part: "encode"; or "qformer", which does not run the ViT and has one block of it only, to save memory.
        device: device that it is on.
    """

    def __init__(self, preset: str, part: str, device: str) -> None:
        config = dataclasses.replace(SeedConfig.preset(preset), decoder_depth=1)
        if part == "qformer":
            config = dataclasses.replace(config, vit_depth=1)
        torch.manual_seed(0)
        self.float32 = SeedTokenizer(config, device=device).eval()
        self._variants: dict[Any, Any] = {}
        codebook = self.float32.quantizer.codebook
        with torch.no_grad():
            normed = torch.randn(8, config.num_tokens, config.vit_dim, device=device)
            z_BND = self.float32.quantizer.encode_task(self.float32.query_embeddings(normed))
            # Random weights tell queries apart more than images; entries around each query tell its images apart.
            near = torch.arange(len(codebook), device=device) % config.num_codes
            codebook.copy_(z_BND.mean(0)[near] + z_BND.std(0)[near] * torch.randn_like(codebook))

    def plain(self, dtype: torch.dtype) -> SeedTokenizer:
        """The modules in `dtype`."""
        if dtype == torch.float32:
            return self.float32
        tok: SeedTokenizer = self._once(("plain", dtype), lambda: copy.deepcopy(self.float32).to(dtype))
        return tok

    def compiled(self, dtype: torch.dtype) -> SeedTokenizer:
        """The modules in `dtype` with the same weights, each block and layer compiled.

        Block by block, because all are alike: that gives the kernels of one whole graph, without the minutes that it
        takes to compile.
        """

        def make() -> SeedTokenizer:
            source = self.plain(dtype)
            tok = copy.deepcopy(source, memo={id(p): p for p in source.parameters()})
            blocks: list[nn.Module] = [*tok.vit.blocks, *tok.qformer.layers]
            for block in blocks:
                block.compile(dynamic=False)
            return tok

        tok: SeedTokenizer = self._once(("compiled", dtype), make)
        return tok

    def fast(self, dtype: torch.dtype, form: str, fused: str = "auto") -> Any:
        """The inference plan in `dtype`, with `form` as `cross_attention` and `fused` as SEED_FAST_FUSED_PASSES."""

        def make() -> Any:
            with environment({"SEED_FAST_FUSED_PASSES": fused}):
                return self.float32.fast(dtype=dtype, cross_attention=form)

        return self._once(("fast", dtype, form, fused), make)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._variants:
            self._variants[key] = make()
        return self._variants[key]


@functools.lru_cache(maxsize=1)  # one at a time: at full size they are gigabytes
def model(preset: str, part: str, device: str) -> Model:
    """The model of a case, the same one for all providers."""
    return Model(preset, part, device)


def _model(inputs: Inputs, case: Case) -> Model:
    return model(case.options["preset"], case.options["part"], next(iter(inputs.values())).device.type)


def _causal(tok: Any, x: Tensor) -> Tensor:
    """Causal embeddings [B, N, C] of pixels [B, 3, S, S], or of features [B, L, E]."""
    return tok.query_embeddings(tok.image_features(x) if x.ndim == 4 else x)


def _official_codes(tok: SeedTokenizer, x: Tensor) -> Tensor:
    z = tok.quantizer.encode_task(_causal(tok, x))
    return official_lookup(z.flatten(0, 1), tok.quantizer.codebook).view(z.shape[:2])


def _codes(tok: Any, x: Tensor) -> Tensor:
    return tok.lookup(_causal(tok, x))


def _call(encode: Encode, tok: Any, inputs: Inputs, dtype: torch.dtype | None = None) -> Call:
    (x,) = inputs.values()
    x = x.to(dtype or x.dtype)

    @torch.no_grad()
    def call() -> Tensor:
        return encode(tok, x)

    return call


def _official(inputs: Inputs, case: Case) -> Call:
    dtype = case.torch_dtype()
    return _call(_official_codes, _model(inputs, case).plain(dtype), inputs, dtype)


def _compiled(inputs: Inputs, case: Case) -> Call:
    dtype = case.torch_dtype()
    return _call(_official_codes, _model(inputs, case).compiled(dtype), inputs, dtype)


def _plain(inputs: Inputs, case: Case) -> Call:
    dtype = case.torch_dtype()
    return _call(_codes, _model(inputs, case).plain(dtype), inputs, dtype)


def _fast(dtype: str, form: str = "auto", fused: str = "auto") -> Provider:
    def prepare(inputs: Inputs, case: Case) -> Call:
        return _call(_codes, _model(inputs, case).fast(getattr(torch, dtype), form, fused), inputs)

    name = FAST[dtype] if form == "auto" else f"{FAST[dtype]}, {form}"
    if fused == "0":
        name += UNFUSED
    devices = ("cuda",) if dtype == "float16" or fused == "0" else ("cpu", "cuda")
    return Provider(name, prepare, ours=True, devices=devices, dtype=dtype)


def _not_tiny(case: Case) -> str:
    return "left out at this size: compiles for longer than everything else" if case.options["preset"] == TINY else ""


def _inputs(case: Case, device: str, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    config, images = SeedConfig.preset(case.options["preset"]), case.shape["images"]
    if case.options["part"] == "qformer":
        return {"features": torch.randn(images, config.num_tokens, config.vit_dim, generator=generator).to(device)}
    return {"pixels": torch.randn(images, 3, config.image_size, config.image_size, generator=generator).to(device)}


def _truth(inputs: Inputs, case: Case) -> Truth:
    tok = _model(inputs, case).float32
    (x,) = inputs.values()
    # Eight images through a ViT-g in float64 are minutes.
    checked = 1 if case.options["part"] == "encode" and case.options["preset"] != TINY else CHECKED
    return float64_codes(tok, x, _causal, checked)


def check(case: Case, provider: Provider, output: Tensor, inputs: Inputs, truth: Truth) -> tuple[str, str]:
    """Check that codes equal float64's wherever rounding cannot change them; remark how many equal float32's."""
    wrong = code_errors(output, truth, provider.dtype or case.dtype, ours=provider.ours)
    if wrong:
        return wrong, ""
    share = float((output[: len(truth.float32)].cpu() == truth.float32).double().mean())
    return "", f"{share:.2%} of codes equal to float32"


def _work(case: Case) -> list[Any]:
    config = SeedConfig.preset(case.options["preset"])
    stages = ("Q-Former", "nearest code") if case.options["part"] == "qformer" else ("ViT", "Q-Former", "nearest code")
    by_stage = costs(config, case.shape["images"], case.dtype)
    return [by_stage[stage] for stage in stages]


def _case(part: str, preset: str, images: int, dtype: str = "float32", **settings: Any) -> Case:
    name = f"{preset}, B={images}" + (f", {dtype}" if dtype != "float32" else "")
    devices = ("cpu",) if dtype == "float32" else ("cuda",)
    return Case(name, {"images": images}, dtype, devices=devices, options={"preset": preset, "part": part}, **settings)


def _cases(part: str) -> tuple[Case, ...]:
    rounds = {images: ROUNDS.get(images, 1) if part == "encode" else None for images in (1, 8, 64, 256)}
    return (
        *(_case(part, TINY, images, quick=images == 8, full=images > 8) for images in (1, 8, 64, 256)),
        *(_case(part, "seed-2", images, full=images > 8, rounds=rounds[images]) for images in rounds),
        _case(part, TINY, 8, "float16", quick=True),
        *(_case(part, "seed-2", images, "float16") for images in (1, 8, 64, 256)),
    )


def _benchmark(
    op: str, bars: tuple[Bar, ...], memory_cases: tuple[str, ...], forms: tuple[Provider, ...] = ()
) -> Benchmark:
    return Benchmark(
        op=op,
        cases=_cases(op),
        providers=(
            *map(_fast, FAST),
            _fast("float16", fused="0"),
            *forms,
            Provider(PLAIN, _plain, ours=True),
            Provider(OFFICIAL, _official),
            Provider(COMPILED, _compiled, unsuited=_not_tiny, compile_limit=COMPILE_SECONDS),
        ),
        baseline=OFFICIAL,
        bars=bars,
        inputs=_inputs,
        truth=_truth,
        check=check,
        flops=lambda case: sum(stage.flops for stage in _work(case)),
        bytes=lambda case: sum(stage.bytes for stage in _work(case)),
        memory_cases=memory_cases,
        memory="call here",
    )


def _gpu_bars() -> tuple[Bar, ...]:
    fast, official = FAST["float16"], (OFFICIAL,)
    return (
        Bar("3x official fp16", "seed-2, B=1, float16", fast, official, 3, device="cuda"),
        Bar("1.3x official fp16", "seed-2, B=64, float16", fast, official, 1.3, device="cuda"),
        Bar("1.05x without fused passes", "seed-2, B=64, float16", fast, (fast + UNFUSED,), 1.05, device="cuda"),
        *(
            Bar("GEMM time at the measured peak / time", f"seed-2, B={n}, float16", fast, (), 0.75, "gemm", "cuda")
            for n in (64, 256)
        ),
        Bar("half of the official extra memory", "seed-2, B=256, float16", fast, official, 2, "memory", "cuda"),
    )


QFORMER = _benchmark(
    "qformer",
    (
        Bar("1.25x the plain modules", "seed-2, B=8", FAST["float32"], (PLAIN,), 1.25),
        Bar("2.3x the plain modules in float32", "seed-2, B=8", FAST["bfloat16"], (PLAIN,), 2.3),
        Bar("1.2x the plain modules", "seed-2, B=1", FAST["float32"], (PLAIN,), 1.2),
    ),
    ("seed-2, B=8",),
    tuple(_fast(dtype, "projected") for dtype in ("float32", "bfloat16")),
)
ENCODE = _benchmark(
    "encode",
    (
        Bar("2.1x the plain modules in float32", "seed-2, B=1", FAST["bfloat16"], (PLAIN,), 2.1),
        *(
            Bar("no slower than the plain modules", f"{preset}, B={n}", FAST["float32"], (PLAIN,), 1)
            for preset, n in ((TINY, 1), (TINY, 64), ("seed-2", 1), ("seed-2", 8))
        ),
        *_gpu_bars(),
    ),
    ("seed-2, B=8", "seed-2, B=256, float16"),
)
