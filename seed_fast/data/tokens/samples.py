"""Samples of codes and text: their kinds and fields, and the parts as which they are stored.

A sample is a dict with `kind`, `key` (where it comes from; may be "") and the fields of its kind. Codes of an image are
an integer array [N].

| kind        | fields                                                          | parts in the store              |
|-------------|-----------------------------------------------------------------|---------------------------------|
| caption     | codes [N], text str (the first), texts tuple of str (all)       | image, text, text ...           |
| question    | images [n, N] (n may be 0), questions and answers lists of str  | images, question, answer ...    |
| video       | images [n, N] (its frames), text str                            | images, text                    |
| edit        | images [2, N] (source, target), instruction str, response str or None | source, target, texts     |
| interleaved | image_ids list of codes or None, texts list of str or None      | as they stand                   |
| text        | text str                                                        | text                            |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from seed_fast._text import shown

KINDS = ("caption", "question", "video", "edit", "interleaved", "text")  # the store keeps the place in this tuple


class SampleProblem(ValueError):
    """A sample that can't be stored. The message says why; the caller knows its name."""


def to_parts(sample: dict[str, Any]) -> list[Any]:
    """Take a sample apart into sequences of codes and strings.

    Raises:
        SampleProblem: a field is missing, or fields don't fit together.
    """
    kind = sample.get("kind")
    if kind not in KINDS:
        raise SampleProblem(f"kind must be one of {', '.join(KINDS)}, got {shown(kind)}")
    try:
        parts = _TO_PARTS[kind](sample)
    except KeyError as error:
        raise SampleProblem(f"a sample of kind {kind} must have {error.args[0]!r}, got {', '.join(sample)}") from None
    texts = [part for part in parts if isinstance(part, str)]
    if kind == "interleaved":
        enough = bool(parts)
    else:
        images = len(parts) - len(texts)
        enough = {"caption": images == 1, "edit": images == 2, "video": images > 0}.get(kind, True) and bool(texts)
    if not enough:
        raise SampleProblem(f"kind {kind}: too few or too many images or texts")
    return parts


def from_parts(kind: str, key: str, parts: Sequence[Any]) -> dict[str, Any]:
    """Put together the sample that `to_parts` took apart."""
    texts = [part for part in parts if isinstance(part, str)]
    images = [part for part in parts if not isinstance(part, str)]
    sample: dict[str, Any] = {"kind": kind, "key": key}
    if kind == "interleaved":
        sample["image_ids"] = [None if isinstance(part, str) else part for part in parts]
        sample["texts"] = [part if isinstance(part, str) else None for part in parts]
    elif kind == "caption":
        sample |= {"codes": images[0], "text": texts[0], "texts": tuple(texts)}
    elif kind == "text":
        sample["text"] = texts[0]
    else:
        sample["images"] = np.stack(images) if images else np.zeros((0, 0), dtype=np.int64)
        if kind == "question":
            sample |= {"questions": texts[0::2], "answers": texts[1::2]}
        elif kind == "video":
            sample["text"] = texts[0]
        else:
            sample |= {"instruction": texts[0], "response": texts[1] if len(texts) > 1 else None}
    return sample


def check_parts(parts: Sequence[Any], *, codebook_size: int, codes_per_image: int) -> list[Any]:
    """Return checked parts, with codes as lists of int.

    Raises:
        SampleProblem: codes are too many, too few or out of range, or a text is blank or can't be written in UTF-8.
    """
    return [
        _check_text(part) if isinstance(part, str) else _check_codes(part, codebook_size, codes_per_image)
        for part in parts
    ]


def _check_text(text: str) -> str:
    if not text.strip():
        raise SampleProblem("a text is blank")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SampleProblem(f"a text can't be written in UTF-8: {error.reason} at {error.start}") from None
    return text


def _check_codes(codes: Any, codebook_size: int, codes_per_image: int) -> list[int]:
    values = codes.tolist() if isinstance(codes, np.ndarray) else codes
    if not isinstance(values, (list, tuple)) or any(type(code) is not int for code in values):
        raise SampleProblem(f"codes must be a list of int, got {shown(codes)}")
    if len(values) != codes_per_image:
        raise SampleProblem(f"an image must have {codes_per_image} codes, got {len(values)}")
    for code in values:
        if not 0 <= code < codebook_size:
            raise SampleProblem(f"a code must be in 0..{codebook_size - 1}, got {shown(code)}")
    return list(values)


def _turns(sample: dict[str, Any]) -> list[str]:
    questions, answers = sample["questions"], sample["answers"]
    if len(questions) != len(answers):
        raise SampleProblem(f"questions and answers must be as many, got {len(questions)} and {len(answers)}")
    return [text for turn in zip(questions, answers, strict=True) for text in turn]


def _slots(sample: dict[str, Any]) -> list[Any]:
    images, texts = sample["image_ids"], sample["texts"]
    if len(images) != len(texts):
        raise SampleProblem(f"image_ids and texts must be as many, got {len(images)} and {len(texts)}")
    for slot, (image, text) in enumerate(zip(images, texts, strict=True)):
        if (image is None) == (text is None):
            raise SampleProblem(
                f"slot {slot} must have an image or a text, got {'neither' if text is None else 'both'}"
            )
    return [image if text is None else text for image, text in zip(images, texts, strict=True)]


_TO_PARTS: dict[str, Callable[[dict[str, Any]], list[Any]]] = {
    "caption": lambda sample: [sample["codes"], *(sample.get("texts") or (sample["text"],))],
    "question": lambda sample: [*sample["images"], *_turns(sample)],
    "video": lambda sample: [*sample["images"], sample["text"]],
    "edit": lambda sample: [
        *sample["images"],
        sample["instruction"],
        *([sample["response"]] if sample.get("response") is not None else []),
    ],
    "interleaved": _slots,
    "text": lambda sample: [sample["text"]],
}
