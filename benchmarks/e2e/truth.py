"""The codes of a batch in float64, and which other codes rounding may turn them into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seed_fast import SeedTokenizer

CHECKED = 8  # images of a batch that are checked, at most, because float64 is slow
# Error allowed of an embedding, as a multiple of that of the plain modules in the same dtype: ours, a peer's.
BUDGET, PEER_BUDGET = 2.0, 6.0


@dataclass(frozen=True)
class Truth:
    """The truth about the first B images of a batch. All tensors are on the CPU.

    Attributes:
        z: [B, N, D] float64, the vectors that are looked up.
        error: the largest distance of a vector that the plain modules compute in float32 from its row of z.
        codebook: [K, D] float64.
        float32: [B, N] int64, the codes of the plain modules in float32.
    """

    z: Tensor
    error: float
    codebook: Tensor
    float32: Tensor


@torch.no_grad()
def float64_codes(
    tok: SeedTokenizer, x: Tensor, causal: Callable[[Any, Tensor], Tensor], checked: int = CHECKED
) -> Truth:
    """Compute the truth about the first `checked` images of `x`.

    Args:
        tok: modules in float32; they compute in float64 while this runs, block by block, and are unchanged afterwards.
        x: pixels or features, as `causal` takes them.
        causal: (tok, x) -> causal embeddings [B, N, C].
        checked: number of images.
    """
    x = x[:checked]
    encode_task, codebook = tok.quantizer.encode_task, tok.quantizer.codebook
    embeddings = causal(tok, x)
    codes, z32 = tok.lookup(embeddings), encode_task(embeddings)
    with _float64(tok):
        z = encode_task(causal(_Unchecked(tok), x.double()))
    error = float((z32.double() - z).norm(dim=-1).max())
    return Truth(z.cpu(), error, codebook.double().cpu(), codes.cpu())


class _Unchecked:
    """The stages of a tokenizer, which leave the dtype of their input as it is."""

    def __init__(self, tok: SeedTokenizer) -> None:
        self._tok = tok

    def image_features(self, pixels: Tensor) -> Tensor:
        return self._tok.vision_norm(self._tok.vit(pixels))

    def query_embeddings(self, features: Tensor) -> Tensor:
        return self._tok.qformer(features)


@contextmanager
def _float64(tok: SeedTokenizer) -> Iterator[None]:
    """Make modules compute in float64 inside the block, each converted while it runs; all at once would need 8 GB more.

    Converting float32 to float64 and back changes no value.
    """

    def widen(module: nn.Module, inputs: Any) -> None:
        module.double()

    def narrow(module: nn.Module, inputs: Any, output: Any) -> None:
        module.float()

    loose = [tok.vit.cls_token, tok.vit.position_embedding, tok.qformer.query_tokens]
    modules = [
        tok.vit.patch_embed, *tok.vit.blocks, tok.vision_norm, tok.qformer.norm, *tok.qformer.layers,
        tok.quantizer.encode_task,
    ]  # fmt: skip
    hooks = [module.register_forward_pre_hook(widen) for module in modules]
    hooks += [module.register_forward_hook(narrow) for module in modules]
    before = [parameter.data for parameter in loose]
    try:
        for parameter in loose:
            parameter.data = parameter.data.double()
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in modules:  # one that failed while it ran
            module.float()
        for parameter, data in zip(loose, before, strict=True):
            parameter.data = data


def code_errors(codes: Tensor, truth: Truth, dtype: str, *, ours: bool) -> str:
    """Say why codes are wrong; "" if they are right.

    An embedding that is off by e may turn entry b into entry c only where c is farther in float64 by no more than
    2 e |b - c|. Here e is a multiple of the plain modules' float32 error, scaled to the roundoff of `dtype`. A peer's
    half precision is not judged, because the official lookup then compares distances of a few digits.

    Args:
        codes: [B, N] int64; only those of the images that `truth` has are compared.
        truth: what `float64_codes` gave.
        dtype: name of the dtype that the codes were computed in.
        ours: whether seed_fast computed them.
    """
    if codes.dtype != torch.int64 or codes.shape[1:] != truth.float32.shape[1:]:
        return f"codes must be int64 [B, {truth.float32.shape[1]}], got {codes.dtype} {list(codes.shape)}"
    # Codes that are no codes.
    codes = codes[: len(truth.float32)].cpu()
    if bool(((codes < 0) | (codes >= len(truth.codebook))).any()):
        return "codes outside of the codebook"
    if dtype != "float32" and not ours:
        return ""
    # How much farther than the nearest entry each chosen one is, and how much of that rounding may explain.
    roundoff = torch.finfo(getattr(torch, dtype)).eps / torch.finfo(torch.float32).eps
    allowed = (BUDGET if ours else PEER_BUDGET) * truth.error * roundoff
    distances = torch.cdist(truth.z.flatten(0, 1), truth.codebook, compute_mode="donot_use_mm_for_euclid_dist").square()
    best = distances.argmin(1)
    chosen = codes.flatten()
    rows = torch.arange(len(chosen))
    gap = distances[rows, chosen] - distances[rows, best]
    slack = 2 * allowed * (truth.codebook[chosen] - truth.codebook[best]).norm(dim=1)
    if not ours:  # distances in float32: their own rounding, as in the benchmark of nearest_code
        size = truth.z.flatten(0, 1).norm(dim=1) + truth.codebook.norm(dim=1).max()
        slack = slack + 2 * (truth.z.shape[-1] + 4) * torch.finfo(torch.float32).eps / 2 * size.square()
    if beyond := int((gap > slack).sum()):
        return f"{beyond} of {len(chosen)} codes differ from float64's by more than rounding explains"
    return ""
