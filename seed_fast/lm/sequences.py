"""Samples of codes and text as training sequences: which ids in which order, and which of them are supervised.

`label i` belongs to `id i` (transformers shifts inside its loss), and IGNORED stands where nothing is learned. The
first label of a sequence is always IGNORED: nothing precedes it, and where sequences are packed into a row, what
precedes it belongs to another sample.

Sources: SEED paper (arXiv 2307.08041) for the two tasks and their prompts; official SEED-LLaMA data code for the
pretraining form, the conversation template and what is supervised in each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from seed_fast.lm.vocabulary import Vocabulary

IGNORED = -100  # what transformers and torch leave out of a cross-entropy
IMAGE_TO_TEXT = "A photo of"
TEXT_TO_IMAGE = "Generate an image"
USER, ASSISTANT = "USER: ", "\nASSISTANT:"  # official conversation template
CAPTION_TASKS = ("caption", "drawing", "pretraining")  # uses of an image with a caption


@dataclass(frozen=True)
class TokenSequence:
    """One sample as a training sequence.

    Args:
        ids: token ids of text and codes.
        labels: for each id itself where it is supervised, otherwise IGNORED.
    """

    ids: list[int]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.ids)


def caption_prompt(vocabulary: Vocabulary, tokenizer: Any, codes: Sequence[int]) -> list[int]:
    """Return the ids of a prompt for captioning: bos, the image, "A photo of"."""
    return [vocabulary.bos, *vocabulary.image(codes), *_prompt_ids(tokenizer, IMAGE_TO_TEXT)]


def drawing_prompt(vocabulary: Vocabulary, tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a prompt for drawing: bos, "Generate an image", the text. What follows is `<img>`."""
    prompt = _prompt_ids(tokenizer, TEXT_TO_IMAGE)
    return [vocabulary.bos, *prompt, *text_ids(vocabulary, tokenizer, text, after=TEXT_TO_IMAGE)]


def caption_sequence(vocabulary: Vocabulary, tokenizer: Any, codes: Sequence[int], text: str) -> TokenSequence:
    """Image to text: bos `<img>` codes `</img>` "A photo of" text eos. Supervised: text and eos."""
    answer = [*text_ids(vocabulary, tokenizer, text, after=IMAGE_TO_TEXT), vocabulary.eos]
    return _answered((caption_prompt(vocabulary, tokenizer, codes), answer))


def drawing_sequence(vocabulary: Vocabulary, tokenizer: Any, codes: Sequence[int], text: str) -> TokenSequence:
    """Text to image: bos "Generate an image" text `<img>` codes `</img>` eos. Supervised: from `<img>` on."""
    answer = [*vocabulary.image(codes), vocabulary.eos]
    return _answered((drawing_prompt(vocabulary, tokenizer, text), answer))


def pretraining_sequence(
    vocabulary: Vocabulary, tokenizer: Any, codes: Sequence[int], text: str, *, image_first: bool
) -> TokenSequence:
    """SEED-LLaMA's pretraining: bos, image and text in either order without a prompt, eos. Supervised: all but bos."""
    image, caption = vocabulary.image(codes), text_ids(vocabulary, tokenizer, text)
    return _supervised(vocabulary, [*image, *caption] if image_first else [*caption, *image])


def interleaved_sequence(
    vocabulary: Vocabulary,
    tokenizer: Any,
    image_ids: Sequence[Sequence[int] | None],
    texts: Sequence[str | None],
) -> TokenSequence:
    """Images and texts in their order: bos, each part, eos. Supervised: all but bos.

    Args:
        image_ids: for each slot the codes of an image, or None where the slot is a text.
        texts: for each slot a text, or None where the slot is an image.

    Raises:
        ValueError: the two differ in length, a slot has both or neither, or there is none.
    """
    if len(image_ids) != len(texts) or not texts:
        raise ValueError(
            f"interleaved_sequence: image_ids and texts must have the same number of slots, at least one; "
            f"got {len(image_ids)} and {len(texts)}"
        )
    ids: list[int] = []
    for slot, (codes, text) in enumerate(zip(image_ids, texts, strict=True)):
        if (codes is None) == (text is None):
            both = "both" if text is not None else "neither"
            raise ValueError(f"interleaved_sequence: slot {slot} must have an image or a text, got {both}")
        if codes is not None:
            ids += vocabulary.image(codes)
        elif text is not None:
            ids += text_ids(vocabulary, tokenizer, text)
    return _supervised(vocabulary, ids)


def text_sequence(vocabulary: Vocabulary, tokenizer: Any, text: str) -> TokenSequence:
    """Text alone: bos, text, eos. Supervised: all but bos."""
    return _supervised(vocabulary, text_ids(vocabulary, tokenizer, text))


def question_sequence(
    vocabulary: Vocabulary,
    tokenizer: Any,
    images: Sequence[Sequence[int]],
    questions: Sequence[str],
    answers: Sequence[str],
) -> TokenSequence:
    """A conversation: bos "USER: " images question "\\nASSISTANT:" answer ... eos. Supervised: answers and eos.

    The images (one, the frames of a video, or none) stand before the first question; further turns are joined by a line
    end. As official, an answer that ends without a mark gets a full stop.

    Raises:
        ValueError: questions and answers differ in number, or there are none.
    """
    if len(questions) != len(answers) or not questions:
        raise ValueError(
            f"question_sequence: questions and answers must be as many, at least one; "
            f"got {len(questions)} and {len(answers)}"
        )
    shown = [id_ for codes in images for id_ in vocabulary.image(codes)]
    turns = []
    for turn, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        begin = [*_prompt_ids(tokenizer, "\n" + USER)] if turn else [vocabulary.bos, *_prompt_ids(tokenizer, USER)]
        asked = _plain_ids(vocabulary, tokenizer, question.strip() + ASSISTANT)
        turns.append(([*begin, *([] if turn else shown), *asked], text_ids(vocabulary, tokenizer, _closed(answer))))
    turns[-1][1].append(vocabulary.eos)
    return _answered(*turns)


def video_sequence(
    vocabulary: Vocabulary, tokenizer: Any, frames: Sequence[Sequence[int]], caption: str
) -> TokenSequence:
    """A captioned video: bos, its frames, the caption, eos. Supervised: caption and eos."""
    shown = [id_ for codes in frames for id_ in vocabulary.image(codes)]
    return _answered(([vocabulary.bos, *shown], [*text_ids(vocabulary, tokenizer, caption), vocabulary.eos]))


def edit_sequence(
    vocabulary: Vocabulary,
    tokenizer: Any,
    source: Sequence[int],
    instruction: str,
    target: Sequence[int],
    response: str | None = None,
) -> TokenSequence:
    """An edit: bos "USER: " source instruction "\\nASSISTANT:" response target eos. Supervised: from response on."""
    asked = _plain_ids(vocabulary, tokenizer, instruction.strip() + ASSISTANT)
    prompt = [vocabulary.bos, *_prompt_ids(tokenizer, USER), *vocabulary.image(source), *asked]
    answer = [] if response is None else text_ids(vocabulary, tokenizer, response)
    return _answered((prompt, [*answer, *vocabulary.image(target), vocabulary.eos]))


def sample_sequence(
    vocabulary: Vocabulary,
    tokenizer: Any,
    sample: Mapping[str, Any],
    task: str = "caption",
    *,
    image_first: bool = True,
) -> TokenSequence:
    """Return the sequence of a sample of a store (`seed_fast.data.tokens`), whatever its kind.

    Args:
        sample: see `seed_fast.data.tokens.samples` for the fields of each kind.
        task: one of CAPTION_TASKS; what an image with a caption is used for. Other kinds have one form each.
        image_first: order of image and text in the task "pretraining".

    Raises:
        ValueError: the task or the kind is unknown, or the sample can't be used (an empty text, a code out of range).
    """
    if task not in CAPTION_TASKS:
        raise ValueError(f"task must be one of {', '.join(CAPTION_TASKS)}, got {task!r}")
    kind = sample["kind"]
    if kind == "caption":
        codes, text = sample["codes"], sample["text"]
        if task == "pretraining":
            return pretraining_sequence(vocabulary, tokenizer, codes, text, image_first=image_first)
        return (caption_sequence if task == "caption" else drawing_sequence)(vocabulary, tokenizer, codes, text)
    if kind == "interleaved":
        return interleaved_sequence(vocabulary, tokenizer, sample["image_ids"], sample["texts"])
    if kind == "text":
        return text_sequence(vocabulary, tokenizer, sample["text"])
    if kind == "question":
        return question_sequence(vocabulary, tokenizer, sample["images"], sample["questions"], sample["answers"])
    if kind == "video":
        return video_sequence(vocabulary, tokenizer, sample["images"], sample["text"])
    if kind == "edit":
        source, target = sample["images"]
        return edit_sequence(vocabulary, tokenizer, source, sample["instruction"], target, sample["response"])
    raise ValueError(f"sample: kind must be one that a store has, got {kind!r}")


def text_ids(vocabulary: Vocabulary, tokenizer: Any, text: str, *, after: str = "") -> list[int]:
    """Return the ids of a text without its outer white space.

    Args:
        vocabulary: ids that a text may not hold.
        tokenizer: of the language model.
        text: the text.
        after: text that precedes it, which may change how its beginning is split; its own ids are left out.

    Raises:
        ValueError: the text is blank, or holds bos, eos or image tokens.
    """
    text = text.strip()
    if not text:
        raise ValueError("a text must hold a word, got none")
    if not after:
        return _plain_ids(vocabulary, tokenizer, text)
    prompt = _prompt_ids(tokenizer, after)
    whole = _plain_ids(vocabulary, tokenizer, f"{after} {text}")
    if tuple(whole[: len(prompt)]) == prompt:
        return whole[len(prompt) :]
    return _plain_ids(
        vocabulary, tokenizer, f" {text}"
    )  # the tokenizer has joined the end of one and the beginning of the other


def _plain_ids(vocabulary: Vocabulary, tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text that may not hold bos, eos or image tokens."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    last_code = vocabulary.first_code + vocabulary.codebook_size - 1
    reserved = {vocabulary.bos, vocabulary.eos, vocabulary.begin_image, vocabulary.end_image}
    for id_ in ids:
        if id_ in reserved or vocabulary.first_code <= id_ <= last_code:
            token = tokenizer.convert_ids_to_tokens(id_)
            raise ValueError(f"a text must not hold the token {token!r}, got {text[:80]!r}")
    return ids


@lru_cache(maxsize=64)
def _prompt_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _answered(*turns: tuple[list[int], list[int]]) -> TokenSequence:
    """Join pairs of ids, of which the first is given and the second is supervised."""
    ids, labels = [], []
    for given, learned in turns:
        ids += given + learned
        labels += [IGNORED] * len(given) + learned
    return TokenSequence(ids, labels)


def _supervised(vocabulary: Vocabulary, ids: list[int]) -> TokenSequence:
    """Put bos and eos around ids; everything except bos is supervised."""
    return _answered(([vocabulary.bos], [*ids, vocabulary.eos]))


def _closed(answer: str) -> str:
    """Add a full stop where an answer ends without a mark."""
    answer = answer.strip()
    return answer if not answer or answer[-1] in ".!?" else answer + "."
