"""Answers of tiny models of both families: alone and in batches, with and without the constraint."""

from __future__ import annotations

import pytest
import torch

from seed_fast.generate.captioning import caption
from seed_fast.generate.decoding import DecodingStrategy, complete, pad_left
from seed_fast.generate.drawing import complete_drawing_prompts, draw
from seed_fast.lm.model import LanguageModel
from tests.generate.conftest import NUM_CODES
from tests.lm.tiny import CODEBOOK

TEXTS = ["a red circle", "a", "a big green square a small blue circle", "a small red square"]
WAYS = [DecodingStrategy(), DecodingStrategy(beams=3), DecodingStrategy(top_p=0.9, temperature=1.5, seed=3)]
way = pytest.mark.parametrize("decoding", WAYS, ids=["greedy", "beams", "top-p"])


def search(lm: LanguageModel, prompt: list[int], steps: int) -> list[int]:
    """Greedy search by the definition: no batch, no padding, no cache."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def prompts(lm: LanguageModel) -> list[list[int]]:
    draws = torch.Generator().manual_seed(1)
    words = [id_ for id_ in range(3, len(lm.tokenizer)) if id_ not in lm.vocabulary.new_ids]
    # LLaMA's padding is its unknown word, which a prompt may hold too
    pick = [[words[int(place)] for place in torch.randint(len(words), (n,), generator=draws)] for n in (9, 2, 5, 1)]
    return [[lm.vocabulary.bos, lm.vocabulary.pad, *row] for row in pick]


def test_a_batch_answers_as_each_prompt_alone_without_a_cache(lm: LanguageModel) -> None:
    given = prompts(lm)
    expected = []
    for prompt in given:
        row = search(lm, prompt, 12)
        expected.append(row[: row.index(lm.vocabulary.eos)] if lm.vocabulary.eos in row else row)
    for size in (1, 3, 4):
        found = complete(lm.model, lm.vocabulary, given, max_tokens=12, images=None, batch_size=size)
        assert found == expected, f"in batches of {size}"
    assert len({tuple(row) for row in expected}) > 1, "the answers depend on the prompts"


@way
def test_every_drawing_is_one_whole_image(lm: LanguageModel, decoding: DecodingStrategy) -> None:
    codes = draw(*lm, TEXTS, num_codes=NUM_CODES, strategy=decoding, batch_size=3)
    assert codes.shape == (len(TEXTS), NUM_CODES)
    assert codes.dtype == torch.int64
    assert 0 <= int(codes.min()) <= int(codes.max()) < CODEBOOK
    assert len(codes.unique(dim=0)) > 1, "drawings depend on their captions"
    free = complete_drawing_prompts(*lm, TEXTS, num_codes=NUM_CODES, strategy=decoding, images=None)
    assert not all(len(found) == 1 for found in map(lm.vocabulary.codes_of, free)), "it is the constraint's doing"


@way
def test_a_caption_holds_no_image_word(lm: LanguageModel, decoding: DecodingStrategy) -> None:
    draws = torch.Generator().manual_seed(0)
    codes = torch.randint(CODEBOOK, (6, NUM_CODES), generator=draws)
    texts = caption(*lm, codes, max_tokens=10, strategy=decoding, batch_size=4)
    assert len(texts) == 6
    assert len(set(texts)) > 1, "captions depend on the codes"
    assert not any("img" in text for text in texts)
    known = set(lm.tokenizer.get_vocab())
    assert all(set(text.split()) <= known for text in texts)


def test_a_drawing_does_not_depend_on_its_batch(lm: LanguageModel) -> None:
    for decoding in WAYS[:2]:
        together = draw(*lm, TEXTS, num_codes=NUM_CODES, strategy=decoding)
        alone = [draw(*lm, [text], num_codes=NUM_CODES, strategy=decoding) for text in TEXTS]
        assert torch.equal(together, torch.cat(alone))


def test_three_beams_find_what_is_at_least_as_likely_as_one(lm: LanguageModel) -> None:
    def log_likelihood(prompt: list[int], answer: list[int]) -> float:
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            rows = lm.model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return float(rows.gather(1, ids[0, len(prompt) :, None]).sum())

    given = prompts(lm)
    options = {"max_tokens": NUM_CODES + 2, "num_codes": NUM_CODES, "images": "force"}
    found = {n: complete(lm.model, lm.vocabulary, given, strategy=DecodingStrategy(n), **options) for n in (1, 8)}
    likely = {n: [log_likelihood(*pair) for pair in zip(given, rows, strict=True)] for n, rows in found.items()}
    assert sum(likely[8]) > sum(likely[1])


def test_sampling_repeats_with_its_seed_alone(lm: LanguageModel) -> None:
    state = torch.get_rng_state()

    def drawn(seed: int) -> torch.Tensor:
        return draw(*lm, TEXTS, num_codes=NUM_CODES, strategy=DecodingStrategy(top_p=1.0, temperature=3.0, seed=seed))

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert torch.equal(state, torch.get_rng_state()), "the caller's random numbers stay as they were"


def test_an_image_that_the_prompt_began_is_finished(lm: LanguageModel) -> None:
    words = lm.vocabulary
    given = [[words.bos, words.begin_image, words.first_code + 3], [words.bos, words.begin_image]]
    made = complete(lm.model, words, given, max_tokens=8, images="forbid", num_codes=NUM_CODES)
    for prompt, row in zip(given, made, strict=True):
        (codes,) = words.codes_of([*prompt, *row])
        assert len(codes) == NUM_CODES


def test_a_model_in_training_is_put_back_into_it(lm: LanguageModel) -> None:
    lm.model.train()
    try:
        draw(*lm, TEXTS[:1], num_codes=NUM_CODES)
        assert lm.model.training
    finally:
        lm.model.eval()


def test_nothing_to_do_gives_nothing(lm: LanguageModel) -> None:
    assert draw(*lm, [], num_codes=NUM_CODES).shape == (0, NUM_CODES)
    assert caption(*lm, []) == []


def test_padding_is_on_the_left_and_masked_by_length() -> None:
    ids, mask = pad_left([[5, 0], [7], [1, 2, 3]], pad=0)
    assert ids.tolist() == [[0, 5, 0], [0, 0, 7], [1, 2, 3]]
    assert mask.tolist() == [[0, 1, 1], [0, 0, 1], [1, 1, 1]]


def test_prompts_that_leave_no_room_are_named(lm: LanguageModel) -> None:
    with pytest.raises(ValueError, match=r"prompt 1 must leave room for 7 of the model's 64 positions, got 5\d tokens"):
        draw(*lm, ["a", "a " * 55], num_codes=NUM_CODES)
    with pytest.raises(ValueError, match="prompt 0 must have at least one token"):
        complete(lm.model, lm.vocabulary, [[]], max_tokens=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams must be at least 1, got 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"top_p": 0.5, "temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": 0.5}, "temperature 0.5 needs top_p"),
        ({"beams": 2, "top_p": 0.5}, "beams must be 1 with top_p, got 2"),
    ],
)
def test_ways_that_can_not_be_meant_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodingStrategy(**options)
