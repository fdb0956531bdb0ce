"""Zero-shot image-text retrieval with a stage-1 model, by causal embeddings and by what the codes keep of them.

A picture is represented by the projection of its last query token, a caption by that of its [CLS] token.
"Reconstructed codes" are the causal embeddings that the decoder makes from the 32 codes, projected in the same way:
the difference between the two rows is what quantisation costs (Table 1 of arXiv 2307.08041, which calls them causal
embedding and causal code).

Shapes: B pictures of a batch, S side of a picture in px.
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
class RetrievalResult:
    """What `retrieval` measured.

    Args:
        images: number of pictures.
        texts: number of captions.
        causal_embeddings: recalls in percent, see `seed_fast.eval.recalls.recalls`.
        reconstructed_codes: the same for reconstructed codes; None: not measured.
        codes_used: number of different codes in all pictures together; None: not measured.
        codebook_size: number of codes in the codebook.
    """

    images: int
    texts: int
    causal_embeddings: dict[str, float]
    reconstructed_codes: dict[str, float] | None
    codes_used: int | None
    codebook_size: int

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as a dict for JSON."""
        return asdict(self)


@torch.inference_mode()
def retrieval(
    model: Stage1Model,
    captions: CaptionTokenizer,
    batches: Iterable[dict[str, Any]],
    *,
    codes: bool = True,
    advance: Callable[[int], None] = lambda images: None,
) -> RetrievalResult:
    """Measure retrieval among all pictures and captions of `batches`.

    Args:
        model: image tokenizer and text tower, in eval mode.
        captions: turns captions into token ids.
        batches: as `open_pairs(..., all_captions=True)` makes them: "pixels" [B, 3, S, S] normalised float32,
            "captions" B lists of strings, "keys" B strings.
        codes: also measure reconstructed codes; needs a tokenizer that went through stage 2.
        advance: called after each batch with the number of its pictures.

    Raises:
        ValueError: there is no picture, an embedding is not finite, or the model has no decoder for `codes`.

    Examples:
        >>> from seed_fast import SeedTokenizer
        >>> from seed_fast.convert.contrast import contrast_folder, load_contrast
        >>> from seed_fast.data.pairs import open_pairs
        >>> folder = contrast_folder("seed-tiny")
        >>> model, captions = load_contrast(folder, SeedTokenizer.from_pretrained(folder))
        >>> pairs = open_pairs("shapes:20", image_size=64, batch_size=10, split="test", all_captions=True)
        >>> retrieval(model, captions, pairs).images
        20
    """
    tok = model.tokenizer
    causal_rows: list[Tensor] = []
    code_rows: list[Tensor] = []
    text_rows: list[Tensor] = []
    owner: list[int] = []
    used = torch.zeros(tok.config.codebook_size, dtype=torch.bool)
    images = 0
    for batch in batches:
        # Embed the pictures: directly, and from their codes.
        causal = tok.causal_embeddings(batch["pixels"].to(tok.device, tok.dtype))
        causal_rows.append(_on_cpu(model.image_embedding(causal), batch["keys"]))
        if codes:
            ids = tok.lookup(causal)
            used[ids.cpu().flatten()] = True
            code_rows.append(_on_cpu(model.image_embedding(tok.reconstruct(ids)), batch["keys"]))

        # Embed the captions, as many at a time as there are pictures, and note which picture each belongs to.
        for number, texts in enumerate(batch["captions"]):
            owner += [images + number] * len(texts)
        flat = [text for texts in batch["captions"] for text in texts]
        for begin in range(0, len(flat), len(causal)):
            part = flat[begin : begin + len(causal)]
            text_rows.append(_on_cpu(model.text_embedding(*(rows.to(tok.device) for rows in captions(part))), part))
        images += len(causal)
        advance(len(causal))
    if not images:
        raise ValueError("retrieval: the data must hold at least one usable picture, got none")
    texts = torch.cat(text_rows).numpy()
    return RetrievalResult(
        images,
        len(texts),
        recalls(torch.cat(causal_rows).numpy(), texts, owner),
        recalls(torch.cat(code_rows).numpy(), texts, owner) if codes else None,
        int(used.sum()) if codes else None,
        tok.config.codebook_size,
    )


def _on_cpu(rows: Tensor, names: list[str]) -> Tensor:
    """Return embeddings as float32 on the CPU, after a check that they are finite: half precision can overflow."""
    finite = rows.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(f"retrieval: the embedding of {names[int(finite.int().argmin())]!r} is not finite")
    return rows.float().cpu()


def table(result: RetrievalResult) -> str:
    """Return the recalls as a table for people."""
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
