"""A language model that sees and draws, judged on the generated world `shapes`, where right and wrong are known.

- Captions: what the model says about held-out pictures, read back and compared with the scene.
- Drawings: codes for held-out captions; the causal embeddings that the tokenizer reconstructs from them look for their
  captions among all, as in `seed_fast.eval.retrieval`.
- Whole images: how many answers are exactly one image, with the constraint and without.
- Perplexity of codes, place by place, in causal order and in another. The papers' reason for causal codes (section 3 of
  arXiv 2307.08041) is that a language model predicts them in that order.

Shapes: B samples, N codes of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seed_fast.data import shapes
from seed_fast.eval.recalls import recalls
from seed_fast.generate.captioning import caption
from seed_fast.generate.decoding import Decoding
from seed_fast.generate.drawing import attempts, draw
from seed_fast.lm.model import LanguageModel
from seed_fast.lm.sequences import drawing_sequence
from seed_fast.lm.vocabulary import Vocabulary
from seed_fast.model.captions import CaptionTokenizer
from seed_fast.model.stage1 import Stage1Model

SAMPLED = Decoding(top_p=1.0)  # from the whole distribution: where a model's mistakes show


@dataclass(frozen=True)
class LanguageReport:
    """What was measured; shares and recalls in percent. See `evaluate`."""

    pictures: int
    captions: dict[str, float]  # of `caption_accuracy`
    drawings: dict[str, float]  # recalls of drawn codes
    pictures_themselves: dict[str, float]  # the same of the pictures' own codes: the most that drawings can reach
    whole_images: dict[str, dict[str, float]]  # "greedy" and "sampled": {"constrained", "free"}
    perplexity: dict[str, dict[str, Any]]  # order: {"mean", "by_place"}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def evaluate(
    speaker: LanguageModel,
    tower: Stage1Model,
    captions: CaptionTokenizer,
    scenes: Sequence[shapes.Scene],
    *,
    decoding: Decoding | None = None,
    shuffled: LanguageModel | None = None,
    batch_size: int = 64,
) -> LanguageReport:
    """Measure all of it on these scenes.

    Args:
        speaker: the language model, with the words of the tower's codebook.
        tower: tokenizer and text tower, in eval mode.
        captions: makes the tower's token ids.
        scenes: held out, with captions that are all different (`shapes.distinct`).
        decoding: of captions and drawings; default: greedy.
        shuffled: a model trained like `speaker` on codes in the order of `shuffled_order`, for the perplexity.
        batch_size: prompts at a time.

    Raises:
        ValueError: there is no scene, or a model has words for another codebook.
    """
    if not scenes:
        raise ValueError("evaluate: scenes must hold at least one, got none")
    tok = tower.tokenizer
    for model in filter(None, (speaker, shuffled)):
        if model.vocabulary.codebook_size != tok.config.codebook_size:
            raise ValueError(
                f"evaluate: the language model must have the tokenizer's {tok.config.codebook_size} codes as words, "
                f"got {model.vocabulary.codebook_size}"
            )
    texts = [shapes.caption(scene) for scene in scenes]
    size, count = tok.config.image_size, tok.config.num_codes
    seen = [tok.encode([shapes.render(scene, size) for scene in part]).cpu() for part in _parts(scenes, batch_size)]
    codes = torch.cat(seen)
    options: dict[str, Any] = {"decoding": decoding or Decoding(), "batch_size": batch_size}
    drawn = draw(*speaker, texts, num_codes=count, **options)
    order = shuffled_order(count)
    curves = {"causal": code_losses(speaker, texts, codes, batch_size=batch_size)}
    curves["shuffled"] = code_losses(speaker, texts, codes[:, order], batch_size=batch_size)
    if shuffled is not None:
        curves["shuffled, trained so"] = code_losses(shuffled, texts, codes[:, order], batch_size=batch_size)
    return LanguageReport(
        len(scenes),
        caption_accuracy(caption(*speaker, codes, **options), scenes),
        drawing_recalls(tower, captions, drawn, texts, batch_size=batch_size),
        drawing_recalls(tower, captions, codes, texts, batch_size=batch_size),
        {
            "greedy": whole_images(speaker, texts, count, Decoding(), batch_size),
            "sampled": whole_images(speaker, texts, count, SAMPLED, batch_size),
        },
        {name: perplexity(losses) for name, losses in curves.items()},
    )


def caption_accuracy(said: Sequence[str], scenes: Sequence[shapes.Scene]) -> dict[str, float]:
    """How right B captions are about their scenes, in percent.

    Returns:
        "read": they are in the language of `shapes.caption`. "objects": and name colour, shape and size of every object
        rightly, and no other. "exact": and all else they say is true: positions, relations, background, pattern.
        "verbatim": they are the scene's own caption; its wording is drawn by lot, which no picture shows.

    Raises:
        ValueError: captions and scenes differ in number, or there are none.
    """
    if len(said) != len(scenes) or not scenes:
        raise ValueError(f"caption_accuracy: captions must be as many as scenes, {len(scenes)}, got {len(said)}")
    right = dict.fromkeys(("read", "objects", "exact", "verbatim"), 0)
    for text, scene in zip(said, scenes, strict=True):
        try:
            description = shapes.parse(text)
        except ValueError:
            continue
        right["read"] += 1
        right["objects"] += _kinds(description.objects) == _kinds(scene.objects)
        right["exact"] += shapes.describes(description, scene)
        right["verbatim"] += text == shapes.caption(scene)
    return {name: 100 * count / len(scenes) for name, count in right.items()}


def _kinds(objects: Sequence[Any]) -> list[tuple[str, str, str]]:
    return sorted((item.size, item.colour, item.shape) for item in objects)


@torch.inference_mode()
def drawing_recalls(
    tower: Stage1Model, captions: CaptionTokenizer, codes: Tensor, texts: Sequence[str], *, batch_size: int = 64
) -> dict[str, float]:
    """Recalls between what codes [B, N] reconstruct and the captions they were drawn for, one each; see `recalls`."""
    tok = tower.tokenizer
    images = [tower.image_embedding(tok.reconstruct(part)).float().cpu() for part in codes.split(batch_size)]
    words = [
        tower.text_embedding(*(rows.to(tok.device) for rows in captions(part))).float().cpu()
        for part in _parts(texts, batch_size)
    ]
    return recalls(torch.cat(images), torch.cat(words), range(len(texts)))


def whole_images(
    speaker: LanguageModel, texts: Sequence[str], num_codes: int, decoding: Decoding, batch_size: int = 64
) -> dict[str, float]:
    """Share of answers, in percent, that are `<img>`, `num_codes` codes, `</img>`: "constrained", and left "free"."""
    found = {}
    for name, images in (("constrained", "force"), ("free", None)):
        options: dict[str, Any] = {"num_codes": num_codes, "decoding": decoding, "batch_size": batch_size}
        made = attempts(*speaker, texts, images=images, **options)
        found[name] = 100 * float(np.mean([is_whole(speaker.vocabulary, ids, num_codes) for ids in made]))
    return found


def is_whole(vocabulary: Vocabulary, ids: Sequence[int], num_codes: int) -> bool:
    """Whether an answer is exactly one image of `num_codes` codes."""
    spans = vocabulary.codes_of(ids)
    return len(ids) == num_codes + 2 and [len(span) for span in spans] == [num_codes]


def shuffled_order(num_codes: int) -> list[int]:
    """The other order: one permutation for all images, so that a place still tells which code stands there."""
    return torch.randperm(num_codes, generator=torch.Generator().manual_seed(0)).tolist()


@torch.inference_mode()
def code_losses(speaker: LanguageModel, texts: Sequence[str], codes: Tensor, *, batch_size: int = 64) -> Tensor:
    """-log p of each code, given the caption and the codes before it: [B, N] float64, in nats."""
    model, tokenizer, vocabulary = speaker
    count = codes.shape[1]
    losses = []
    for part, rows in zip(_parts(texts, batch_size), codes.split(batch_size), strict=True):
        sequences = [
            drawing_sequence(vocabulary, tokenizer, row, text) for row, text in zip(rows.tolist(), part, strict=True)
        ]
        ids = torch.full((len(rows), max(map(len, sequences))), vocabulary.pad)
        mask = torch.zeros_like(ids)
        places = []
        for number, sequence in enumerate(sequences):
            ids[number, : len(sequence)] = torch.tensor(sequence.ids)
            mask[number, : len(sequence)] = 1
            first = len(sequence) - count - 2  # the codes, `</img>` and the end are the last
            places.append(torch.arange(first, first + count))
        places_BN = torch.stack(places)
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
        before = (places_BN - 1).to(logits.device)[:, :, None].expand(-1, -1, logits.shape[-1])
        words = logits.gather(1, before).double().cpu().log_softmax(-1)
        losses.append(-words.gather(2, ids.gather(1, places_BN)[:, :, None])[:, :, 0])
    return torch.cat(losses)


def perplexity(losses: Tensor) -> dict[str, Any]:
    """Of losses [B, N]: {"mean": over all codes, "by_place": N values}."""
    return {"mean": math.exp(float(losses.mean())), "by_place": losses.mean(0).exp().tolist()}


def table(report: LanguageReport) -> str:
    """The numbers as lines for people."""
    said, drawn, real = report.captions, report.drawings, report.pictures_themselves
    lines = [
        f"{report.pictures} held-out pictures",
        f"captions   {said['objects']:6.1f} % name colour, shape and size of every object rightly",
        f"           {said['exact']:6.1f} % are right in all they say; {said['read']:.1f} % can be read",
        f"drawings   {drawn['TR@1']:6.1f} % retrieve their caption (R@1; R@5 {drawn['TR@5']:.1f} %); "
        f"the pictures themselves {real['TR@1']:.1f} %",
    ]
    for way, shares in report.whole_images.items():
        free, constrained = shares["free"], shares["constrained"]
        lines.append(f"whole images, {way:<8} {free:6.1f} % without the constraint, {constrained:.1f} % with it")
    for order, values in report.perplexity.items():
        lines.append(f"perplexity of codes, {order:<21} {values['mean']:8.2f}")
    return "\n".join(lines)


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[begin : begin + size] for begin in range(0, len(items), size)]
