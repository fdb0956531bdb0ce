"""Evaluation of a language model that captions and draws, on the generated world `shapes`, where the truth is known.

- Captions: what the model writes about held-out pictures, parsed and compared with the scene.
- Drawings: codes drawn for held-out captions. The tokenizer reconstructs causal embeddings from them, which retrieve
  their captions among all of them, as in `seed_fast.eval.retrieval`.
- Whole images: how many completions are exactly one image, with the constraint and without.
- Perplexity of codes at each position, in causal order and in another. The papers' reason for causal codes (section 3
  of arXiv 2307.08041) is that a language model predicts them in that order.

Shapes: B samples, N codes of an image, T tokens, V vocabulary, P width of the projection.
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
from seed_fast.generate.decoding import DecodingStrategy
from seed_fast.generate.drawing import complete_drawing_prompts, draw
from seed_fast.lm.model import LanguageModel
from seed_fast.lm.sequences import drawing_sequence
from seed_fast.lm.vocabulary import Vocabulary
from seed_fast.model.captions import CaptionTokenizer
from seed_fast.model.stage1 import Stage1Model

SAMPLED = DecodingStrategy(top_p=1.0)  # from the whole distribution, where a model's mistakes show


@dataclass(frozen=True)
class LanguageModelResult:
    """What `evaluate` measured. Shares and recalls are in percent.

    Args:
        pictures: number of scenes.
        captions: the result of `caption_accuracy`.
        drawings: recalls of drawn codes, see `drawing_recalls`.
        pictures_themselves: the same for the codes of the pictures: the most that drawings can be expected to reach.
        whole_images: {"greedy", "sampled"}, each the result of `whole_images`.
        perplexity: {order: result of `perplexity`}.
    """

    pictures: int
    captions: dict[str, float]
    drawings: dict[str, float]
    pictures_themselves: dict[str, float]
    whole_images: dict[str, dict[str, float]]
    perplexity: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as a dict for JSON."""
        return asdict(self)


def evaluate(
    lm: LanguageModel,
    tower: Stage1Model,
    captions: CaptionTokenizer,
    scenes: Sequence[shapes.Scene],
    *,
    strategy: DecodingStrategy | None = None,
    shuffled: LanguageModel | None = None,
    batch_size: int = 64,
) -> LanguageModelResult:
    """Measure captions, drawings, whole images and perplexity on these scenes.

    Args:
        lm: the language model, with image tokens for the tower's codebook.
        tower: image tokenizer and text tower, in eval mode.
        captions: makes the tower's token ids.
        scenes: held-out scenes whose captions all differ (`shapes.distinct`).
        strategy: how tokens of captions and drawings are chosen; default: greedy search.
        shuffled: a model trained like `lm` on codes in the order of `shuffled_order`, to compare the perplexity with.
        batch_size: prompts per batch.

    Raises:
        ValueError: there is no scene, or a model has image tokens for another codebook.

    Examples:
        >>> from seed_fast import SeedTokenizer
        >>> from seed_fast.convert.contrast import contrast_folder, load_contrast
        >>> from seed_fast.lm.model import load
        >>> folder = contrast_folder("seed-tiny")
        >>> tower, captions = load_contrast(folder, SeedTokenizer.from_pretrained(folder))
        >>> scenes = [shapes.scene(0, index, "test") for index in shapes.distinct(0, 2, "test")]
        >>> evaluate(load("examples/seed-opt-tiny"), tower, captions, scenes).pictures
        2
    """
    if not scenes:
        raise ValueError("evaluate: scenes must hold at least one, got none")
    tok = tower.tokenizer
    for each in filter(None, (lm, shuffled)):
        each.vocabulary.check_codebook(tok.config.codebook_size)

    # Render the scenes and tokenise them.
    texts = [shapes.caption(scene) for scene in scenes]
    size, count = tok.config.image_size, tok.config.num_codes
    parts = [tok.encode([shapes.render(scene, size) for scene in part]).cpu() for part in _parts(scenes, batch_size)]
    codes_BN = torch.cat(parts)

    # Caption the pictures, and draw their captions.
    options: dict[str, Any] = {"strategy": strategy or DecodingStrategy(), "batch_size": batch_size}
    written = caption(*lm, codes_BN.tolist(), **options)
    drawn_BN = draw(*lm, texts, num_codes=count, **options)

    # Predict the pictures' codes in causal order and in another.
    order = shuffled_order(count)
    losses = {
        "causal": code_losses(lm, texts, codes_BN, batch_size=batch_size),
        "shuffled": code_losses(lm, texts, codes_BN[:, order], batch_size=batch_size),
    }
    if shuffled is not None:
        losses["shuffled, trained so"] = code_losses(shuffled, texts, codes_BN[:, order], batch_size=batch_size)
    return LanguageModelResult(
        len(scenes),
        caption_accuracy(written, scenes),
        drawing_recalls(tower, captions, drawn_BN, texts, batch_size=batch_size),
        drawing_recalls(tower, captions, codes_BN, texts, batch_size=batch_size),
        {
            "greedy": whole_images(lm, texts, count, DecodingStrategy(), batch_size),
            "sampled": whole_images(lm, texts, count, SAMPLED, batch_size),
        },
        {name: perplexity(losses_BN) for name, losses_BN in losses.items()},
    )


def caption_accuracy(captions: Sequence[str], scenes: Sequence[shapes.Scene]) -> dict[str, float]:
    """Compare B captions with their B scenes.

    Returns:
        Shares of the captions, in percent. "read": `shapes.parse` understands them. "objects": they also name colour,
        shape and size of every object rightly, and no other object. "exact": everything else they state is true too:
        positions, relations, background, pattern. "verbatim": they equal the scene's own caption, whose wording is
        drawn at random, so that no picture shows it.

    Raises:
        ValueError: captions and scenes differ in number, or there are none.

    Examples:
        >>> scene = shapes.scene(0, 0, "test")
        >>> caption_accuracy([shapes.caption(scene)], [scene])
        {'read': 100.0, 'objects': 100.0, 'exact': 100.0, 'verbatim': 100.0}
    """
    if len(captions) != len(scenes) or not scenes:
        raise ValueError(f"caption_accuracy: captions must be as many as scenes, {len(scenes)}, got {len(captions)}")
    right = dict.fromkeys(("read", "objects", "exact", "verbatim"), 0)
    for text, scene in zip(captions, scenes, strict=True):
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
    """Measure how often drawings retrieve the caption they were drawn for.

    Args:
        tower: image tokenizer and text tower, in eval mode.
        captions: makes the tower's token ids.
        codes: [B, N] integers, one drawing per caption.
        texts: B captions.
        batch_size: drawings or captions per forward pass.

    Returns:
        Recalls in percent, see `seed_fast.eval.recalls.recalls`.
    """
    tok = tower.tokenizer
    images = [tower.image_embedding(tok.reconstruct(part)).float().cpu() for part in codes.split(batch_size)]
    rows = [
        tower.text_embedding(*(ids.to(tok.device) for ids in captions(part))).float().cpu()
        for part in _parts(texts, batch_size)
    ]
    return recalls(torch.cat(images), torch.cat(rows), range(len(texts)))


def whole_images(
    lm: LanguageModel, texts: Sequence[str], num_codes: int, strategy: DecodingStrategy, batch_size: int = 64
) -> dict[str, float]:
    """Measure how many completions of drawing prompts are `<img>`, `num_codes` codes, `</img>`, and nothing else.

    Returns:
        Shares in percent: "constrained", where the model may write nothing else, and "free", where it may.
    """
    shares = {}
    options: dict[str, Any] = {"num_codes": num_codes, "strategy": strategy, "batch_size": batch_size}
    for name, images in (("constrained", "force"), ("free", None)):
        completions = complete_drawing_prompts(*lm, texts, images=images, **options)
        shares[name] = 100 * float(np.mean([is_whole(lm.vocabulary, ids, num_codes) for ids in completions]))
    return shares


def is_whole(vocabulary: Vocabulary, ids: Sequence[int], num_codes: int) -> bool:
    """Return True if the tokens are exactly one image of `num_codes` codes."""
    spans = vocabulary.codes_of(ids)
    return len(ids) == num_codes + 2 and [len(span) for span in spans] == [num_codes]


def shuffled_order(num_codes: int) -> list[int]:
    """Return the other order of codes: one permutation for all images, so that each position keeps its own meaning."""
    return torch.randperm(num_codes, generator=torch.Generator().manual_seed(0)).tolist()


@torch.inference_mode()
def code_losses(lm: LanguageModel, texts: Sequence[str], codes: Tensor, *, batch_size: int = 64) -> Tensor:
    """Measure how hard each code is to predict from the caption and the codes before it.

    Args:
        lm: the language model.
        texts: B captions.
        codes: [B, N] integers, in the order in which they are to be predicted.
        batch_size: sequences per forward pass.

    Returns:
        The negative log-likelihood of each code [B, N] float64, in nats.
    """
    model, tokenizer, vocabulary = lm
    count = codes.shape[1]
    losses = []
    for part, rows in zip(_parts(texts, batch_size), codes.split(batch_size), strict=True):
        sequences = [
            drawing_sequence(vocabulary, tokenizer, row, text) for row, text in zip(rows.tolist(), part, strict=True)
        ]
        # Pad the sequences on the right, and note where the codes stand in each.
        ids_BT = torch.full((len(rows), max(map(len, sequences))), vocabulary.pad)
        mask_BT = torch.zeros_like(ids_BT)
        positions = []
        for number, sequence in enumerate(sequences):
            ids_BT[number, : len(sequence)] = torch.tensor(sequence.ids)
            mask_BT[number, : len(sequence)] = 1
            first = len(sequence) - count - 2  # the codes, `</img>` and the end of sequence come last
            positions.append(torch.arange(first, first + count))
        positions_BN = torch.stack(positions)

        # The logits at one position predict the token at the next.
        logits_BTV = model(input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device)).logits
        before = (positions_BN - 1).to(logits_BTV.device)[:, :, None].expand(-1, -1, logits_BTV.shape[-1])
        log_p_BNV = logits_BTV.gather(1, before).double().cpu().log_softmax(-1)
        losses.append(-log_p_BNV.gather(2, ids_BT.gather(1, positions_BN)[:, :, None])[:, :, 0])
    return torch.cat(losses)


def perplexity(losses: Tensor) -> dict[str, Any]:
    """Return the perplexity of losses [B, N] in nats: {"mean": of all codes, "by_place": N values, one per position}.

    Examples:
        >>> perplexity(torch.zeros(2, 3))
        {'mean': 1.0, 'by_place': [1.0, 1.0, 1.0]}
    """
    return {"mean": math.exp(float(losses.mean())), "by_place": losses.mean(0).exp().tolist()}


def table(result: LanguageModelResult) -> str:
    """Return the result as lines of text for people."""
    captions, drawings, pictures = result.captions, result.drawings, result.pictures_themselves
    lines = [
        f"{result.pictures} held-out pictures",
        f"captions   {captions['objects']:6.1f} % name colour, shape and size of every object rightly",
        f"           {captions['exact']:6.1f} % are right in all they say; {captions['read']:.1f} % can be read",
        f"drawings   {drawings['TR@1']:6.1f} % retrieve their caption (R@1; R@5 {drawings['TR@5']:.1f} %); "
        f"the pictures themselves {pictures['TR@1']:.1f} %",
    ]
    for way, shares in result.whole_images.items():
        free, constrained = shares["free"], shares["constrained"]
        lines.append(f"whole images, {way:<8} {free:6.1f} % without the constraint, {constrained:.1f} % with it")
    for order, values in result.perplexity.items():
        lines.append(f"perplexity of codes, {order:<21} {values['mean']:8.2f}")
    return "\n".join(lines)


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[begin : begin + size] for begin in range(0, len(items), size)]
