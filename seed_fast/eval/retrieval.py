"""Zero-shot image-text retrieval with a stage-1 model: causal embeddings, and what codes keep of them.

A picture is the projection of its last query, a caption that of its [CLS]. "Reconstructed codes" are the causal
embeddings that the decoder makes of the 32 codes, projected alike: the gap between the two rows is what quantising
costs (Table 1 of arXiv 2307.08041, where they are called causal embedding and causal code).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from seed_fast.eval.recalls import KS, recalls
from seed_fast.model.captions import CaptionTokenizer
from seed_fast.model.stage1 import Stage1Model

ROWS = {"causal_embeddings": "causal embeddings", "reconstructed_codes": "reconstructed codes"}


@dataclass(frozen=True)
class Retrieval:
    """The measured recalls, in percent; see `recalls`."""

    images: int
    texts: int
    causal_embeddings: dict[str, float]
    reconstructed_codes: dict[str, float] | None  # None: not asked for
    codes_used: int | None  # different codes in all pictures together
    codebook_size: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@torch.inference_mode()
def retrieval(
    model: Stage1Model,
    captions: CaptionTokenizer,
    batches: Iterable[dict[str, Any]],
    *,
    codes: bool = True,
    advance: Callable[[int], None] = lambda images: None,
) -> Retrieval:
    """Measure retrieval among all pictures and captions of `batches`.

    Args:
        model: in eval mode.
        captions: makes token ids of captions.
        batches: of `open_pairs(..., all_captions=True)`: "pixels" [B, 3, S, S], "captions" B lists of strings, "keys".
        codes: also measure reconstructed codes; needs the tokenizer after stage 2.
        advance: called with the number of images after each batch.

    Raises:
        ValueError: there is no picture, an embedding is not finite, or the model has no decoder for `codes`.
    """
    tok = model.tokenizer
    causal_rows: list[Tensor] = []
    code_rows: list[Tensor] = []
    text_rows: list[Tensor] = []
    owner: list[int] = []
    used = torch.zeros(tok.config.codebook_size, dtype=torch.bool)
    images = 0
    for batch in batches:
        causal = tok.causal_embeddings(batch["pixels"].to(tok.device, tok.dtype))
        causal_rows.append(_on_cpu(model.image_embedding(causal), batch["keys"]))
        if codes:
            ids = tok.lookup(causal)
            used[ids.cpu().flatten()] = True
            code_rows.append(_on_cpu(model.image_embedding(tok.reconstruct(ids)), batch["keys"]))
        for number, texts in enumerate(batch["captions"]):
            owner += [images + number] * len(texts)
        flat = [text for texts in batch["captions"] for text in texts]
        for begin in range(0, len(flat), len(causal)):  # as many captions at a time as pictures
            some = flat[begin : begin + len(causal)]
            text_rows.append(_on_cpu(model.text_embedding(*(rows.to(tok.device) for rows in captions(some))), some))
        images += len(causal)
        advance(len(causal))
    if not images:
        raise ValueError("retrieval: the data must hold at least one usable picture, got none")
    texts = torch.cat(text_rows).numpy()
    return Retrieval(
        images,
        len(texts),
        recalls(torch.cat(causal_rows).numpy(), texts, owner),
        recalls(torch.cat(code_rows).numpy(), texts, owner) if codes else None,
        int(used.sum()) if codes else None,
        tok.config.codebook_size,
    )


def _on_cpu(rows: Tensor, names: list[str]) -> Tensor:
    """As float32, after a check: half precision can overflow."""
    finite = rows.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(f"retrieval: the embedding of {names[int(finite.int().argmin())]!r} is not finite")
    return rows.float().cpu()


def table(result: Retrieval) -> str:
    """The recalls as a table for people."""
    names = [f"{way}@{k}" for way in ("TR", "IR") for k in KS] + ["R@mean"]
    lines = [" " * 20 + "".join(f"{name:>8}" for name in names)]
    for row, title in ROWS.items():
        values = getattr(result, row)
        if values is not None:
            lines.append(f"{title:<20}" + "".join(f"{values[name]:>8.1f}" for name in names))
    lines.append(f"{result.images} images, {result.texts} captions; TR: image to text, IR: text to image, percent")
    if result.codes_used is not None:
        lines.append(f"{result.codes_used} of {result.codebook_size} codes used")
    return "\n".join(lines)
