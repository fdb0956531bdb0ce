"""Samples to ids: the order of each form, what is supervised in it, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from seed_fast.lm import sequences
from seed_fast.lm.vocabulary import add_image_tokens
from tests.lm.tiny import CODEBOOK, tokenizer

pytest.importorskip("transformers")

CODES = [3, 0, 23]


@pytest.fixture(params=["opt", "llama"])
def words(request):
    return tokenizer(request.param)


@pytest.fixture
def vocabulary(words):
    return add_image_tokens(words, CODEBOOK)


@pytest.fixture(scope="module")
def letters():
    """Byte-level pairs, as OPT and GPT-2: a space belongs to the word after it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    texts = ["A photo of a red circle", "Generate an image a red circle", "USER: which colour\nASSISTANT: a red one."]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts * 3, trainers.BpeTrainer(special_tokens=["</s>", "<pad>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="</s>",
        bos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def spoken(tokenizer, ids):
    """Ids as words, special ones too."""
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def supervised(sequence):
    """The ids that are learned; everywhere else the label is IGNORED, and a label is never another id."""
    assert len(sequence.labels) == len(sequence.ids)
    assert all(label in (sequences.IGNORED, id_) for id_, label in zip(sequence.ids, sequence.labels, strict=True))
    assert sequence.labels[0] == sequences.IGNORED
    return [label for label in sequence.labels if label != sequences.IGNORED]


def test_a_caption_is_learned_after_the_image_and_its_prompt(words, vocabulary):
    sequence = sequences.caption_sequence(vocabulary, words, CODES, "a red circle")
    bos = words.bos_token
    image = "<img> <img_00003> <img_00000> <img_00023> </img>"
    assert spoken(words, sequence.ids) == f"{bos} {image} A photo of a red circle </s>"
    assert spoken(words, supervised(sequence)) == "a red circle </s>"


def test_an_image_is_learned_with_its_markers_after_the_text(words, vocabulary):
    sequence = sequences.drawing_sequence(vocabulary, words, np.array(CODES, dtype=np.uint16), " a red circle\n")
    bos = words.bos_token
    image = "<img> <img_00003> <img_00000> <img_00023> </img>"
    assert spoken(words, sequence.ids) == f"{bos} Generate an image a red circle {image} </s>"
    assert spoken(words, supervised(sequence)) == f"{image} </s>"
    assert all(type(id_) is int for id_ in sequence.ids)


def test_a_prompt_is_what_precedes_the_supervised_part(letters):
    vocabulary = add_image_tokens(letters, CODEBOOK)
    for text in ("a red circle", "été: 12 o'clock", "of of A photo of", "x"):
        caption = sequences.caption_sequence(vocabulary, letters, CODES, text)
        drawing = sequences.drawing_sequence(vocabulary, letters, CODES, text)
        assert caption.ids == sequences.caption_prompt(vocabulary, letters, CODES) + supervised(caption)
        assert drawing.ids == sequences.drawing_prompt(vocabulary, letters, text) + supervised(drawing)


def test_a_text_continues_its_prompt_as_the_tokenizer_splits_the_whole(letters):
    vocabulary = add_image_tokens(letters, CODEBOOK)
    caption = sequences.caption_sequence(vocabulary, letters, CODES, "a red circle")
    whole = letters("A photo of a red circle", add_special_tokens=False).input_ids
    assert caption.ids[2 + len(CODES) + 1 : -1] == whole
    assert letters.decode(supervised(caption)[:-1]) == " a red circle"


@pytest.mark.parametrize("image_first", [True, False])
def test_pretraining_supervises_both_halves_in_either_order(words, vocabulary, image_first):
    sequence = sequences.pretraining_sequence(vocabulary, words, CODES, "a red circle", image_first=image_first)
    image = "<img> <img_00003> <img_00000> <img_00023> </img>"
    body = f"{image} a red circle </s>" if image_first else f"a red circle {image} </s>"
    assert spoken(words, sequence.ids) == f"{words.bos_token} {body}"
    assert spoken(words, supervised(sequence)) == body


def test_interleaved_parts_keep_their_order(words, vocabulary):
    sequence = sequences.interleaved_sequence(
        vocabulary, words, [None, [1, 2], [5], None], ["a red", None, None, "big"]
    )
    body = "a red <img> <img_00001> <img_00002> </img> <img> <img_00005> </img> big </s>"
    assert spoken(words, supervised(sequence)) == body
    with pytest.raises(ValueError, match="slot 1 must have an image or a text, got both"):
        sequences.interleaved_sequence(vocabulary, words, [None, [1]], ["a", "b"])
    with pytest.raises(ValueError, match="got 1 and 2"):
        sequences.interleaved_sequence(vocabulary, words, [None], ["a", "b"])


def test_answers_are_learned_and_questions_are_not(letters):
    vocabulary = add_image_tokens(letters, CODEBOOK)
    sequence = sequences.question_sequence(vocabulary, letters, [CODES], ["which colour", "and"], ["a red one", "no!"])
    image = "".join(f"<img_{code:05d}>" for code in CODES)
    said = f"</s>USER: <img>{image}</img>which colour\nASSISTANT:a red one.\nUSER: and\nASSISTANT:no!</s>"
    assert letters.decode(sequence.ids) == said
    assert letters.decode(supervised(sequence)) == "a red one.no!</s>"


def test_an_edit_is_learned_from_the_response_on(letters):
    vocabulary = add_image_tokens(letters, CODEBOOK)
    sequence = sequences.edit_sequence(vocabulary, letters, [1], "a red one", [2], "circle")
    assert letters.decode(sequence.ids) == (
        "</s>USER: <img><img_00001></img>a red one\nASSISTANT:circle<img><img_00002></img></s>"
    )
    assert letters.decode(supervised(sequence)) == "circle<img><img_00002></img></s>"


@pytest.mark.parametrize("text", ["a </s> red", "<img> a", "a <img_00003>", "</img>"])
def test_text_cannot_bring_words_that_end_or_draw(words, vocabulary, text):
    with pytest.raises(ValueError, match="a text must not hold the token"):
        sequences.caption_sequence(vocabulary, words, CODES, text)


def test_blank_texts_and_foreign_codes_are_refused(words, vocabulary):
    with pytest.raises(ValueError, match="a text must hold a word"):
        sequences.caption_sequence(vocabulary, words, CODES, " \n")
    with pytest.raises(ValueError, match=f"0..{CODEBOOK - 1}, got {CODEBOOK}"):
        sequences.drawing_sequence(vocabulary, words, [CODEBOOK], "a red circle")


def test_every_kind_of_a_store_becomes_its_sequence(words, vocabulary):
    def of(task="caption", **sample):
        return spoken(words, supervised(sequences.sample_sequence(vocabulary, words, sample, task)))

    picture = {"kind": "caption", "codes": [1], "text": "a circle"}
    image = "<img> <img_00001> </img>"
    assert of(**picture) == "a circle </s>"
    assert of(task="drawing", **picture) == f"{image} </s>"
    assert of(task="pretraining", **picture) == f"{image} a circle </s>"
    assert of(kind="interleaved", image_ids=[[1], None], texts=[None, "big"]) == f"{image} big </s>"
    assert of(kind="text", text="big") == "big </s>"
    assert of(kind="video", images=[[1], [2]], text="big") == "big </s>"
    assert of(kind="question", images=[[1]], questions=["red"], answers=["a circle !"]) == "a circle <unk> </s>"
    assert of(kind="edit", images=[[2], [1]], instruction="red", response=None) == f"{image} </s>"
    with pytest.raises(ValueError, match="kind must be one that a store has, got 'sound'"):
        of(kind="sound")
    with pytest.raises(ValueError, match="task must be one of caption, drawing, pretraining, got 'draw'"):
        of(task="draw", **picture)
