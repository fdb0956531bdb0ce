"""Image words: their ids, what is refused, and images in and out of ids."""

from __future__ import annotations

import pytest

from seed_fast.lm.vocabulary import Vocabulary, add_image_tokens
from tests.lm.tiny import tokenizer

pytest.importorskip("transformers")


@pytest.fixture
def opt():
    return tokenizer("opt")


def test_new_ids_follow_the_words_of_the_tokenizer(opt):
    size = len(opt)
    vocabulary = add_image_tokens(opt, 24)
    assert (vocabulary.first_code, vocabulary.begin_image, vocabulary.end_image) == (size, size + 24, size + 25)
    assert len(opt) == size + 26
    assert vocabulary.new_ids == list(range(size, size + 26))
    assert (vocabulary.bos, vocabulary.eos, vocabulary.pad) == (2, 2, 1)
    assert opt.convert_tokens_to_ids("<img_00023>") == size + 23
    assert Vocabulary.of_tokenizer(opt) == vocabulary


def test_llama_is_padded_with_unk():
    vocabulary = add_image_tokens(tokenizer("llama"), 24)
    assert (vocabulary.bos, vocabulary.eos, vocabulary.pad) == (1, 2, 0)


def test_words_are_added_once_and_come_back_from_a_folder(opt, tmp_path):
    from transformers import AutoTokenizer

    vocabulary = add_image_tokens(opt, 24)
    size = len(opt)
    assert add_image_tokens(opt, 24) == vocabulary
    assert len(opt) == size
    opt.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert Vocabulary.of_tokenizer(again) == vocabulary
    ids = again("a red <img><img_00003><img_00007></img> circle", add_special_tokens=False)["input_ids"]
    assert vocabulary.codes_of(ids) == [[3, 7]]


def test_an_image_goes_to_ids_and_back(opt):
    vocabulary = add_image_tokens(opt, 24)
    ids = vocabulary.image([5, 0, 23])
    assert ids == [vocabulary.begin_image, *(vocabulary.first_code + c for c in (5, 0, 23)), vocabulary.end_image]
    assert vocabulary.codes_of([2, *ids, 9, *vocabulary.image([1]), 2]) == [[5, 0, 23], [1]]


@pytest.mark.parametrize(
    "broken",
    [
        lambda v: [v.begin_image, v.first_code],  # no end
        lambda v: [v.first_code, v.end_image],  # no beginning
        lambda v: [v.begin_image, v.end_image],  # nothing between
        lambda v: [v.begin_image, v.first_code, 5, v.end_image],  # a word of text between
    ],
)
def test_a_broken_image_has_no_codes(opt, broken):
    vocabulary = add_image_tokens(opt, 24)
    assert vocabulary.codes_of(broken(vocabulary)) == []
    assert vocabulary.codes_of([*broken(vocabulary), *vocabulary.image([4])]) == [[4]]


@pytest.mark.parametrize("code", [-1, 24])
def test_a_code_outside_the_codebook_is_named(opt, code):
    with pytest.raises(ValueError, match=rf"a code must be in 0\.\.23, got {code}"):
        add_image_tokens(opt, 24).image([0, code])


def test_other_image_words_are_refused(opt):
    with pytest.raises(ValueError, match="must have the image tokens"):
        Vocabulary.of_tokenizer(opt)
    with pytest.raises(ValueError, match="codebook_size must be at least 1, got 0"):
        add_image_tokens(opt, 0)
    add_image_tokens(opt, 24)
    with pytest.raises(ValueError, match="codebook_size must be 24, as the tokenizer has it already, got 8"):
        add_image_tokens(opt, 8)


def test_image_words_with_a_gap_are_refused(opt):
    opt.add_tokens(["<img_00000>", "between", "<img_00001>", "<img>", "</img>"])
    with pytest.raises(ValueError, match="<img_00001> must be"):
        Vocabulary.of_tokenizer(opt)
    other = tokenizer("opt")
    other.add_tokens(["<img_00000>", "<img_00002>", "<img>", "</img>"])
    with pytest.raises(ValueError, match="got <img_00002> too"):
        Vocabulary.of_tokenizer(other)
