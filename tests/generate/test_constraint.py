"""Which tokens `ImageSpans` lets follow: against a grammar spelled out token by token."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from seed_fast.lm.constraint import ImageSpans  # noqa: E402
from seed_fast.lm.vocabulary import Vocabulary  # noqa: E402

WORDS = Vocabulary(first_code=6, codebook_size=4, begin_image=10, end_image=11, bos=2, eos=2, pad=1)
SIZE = 13  # ids 0 to 5 and 12 are words; a padded embedding has more rows than the tokenizer has words
CODES, BEGIN, END = {6, 7, 8, 9}, 10, 11
TEXT = {0, 1, 2, 3, 4, 5, 12}


def grammar(ids: list[int], num_codes: int) -> set[int]:
    """What may follow, by walking through the row."""
    written = None
    for id_ in ids:
        if id_ == BEGIN:
            written = 0
        elif id_ == END:
            written = None
        elif written is not None:
            written += 1
    if written is None:
        return TEXT | {BEGIN}
    return CODES if written < num_codes else {END}


def allowed(processor: ImageSpans, ids: list[int]) -> set[int]:
    scores = torch.randn(1, SIZE)
    made = processor(torch.tensor([ids]), scores)
    open_ = made.isfinite()[0]
    assert torch.equal(made[0][open_], scores[0][open_]), "what is allowed keeps its score"
    assert bool((made[0][~open_] == -torch.inf).all())
    return set(open_.nonzero().flatten().tolist())


def image(*codes: int) -> list[int]:
    return [BEGIN, *codes, END]


@pytest.mark.parametrize(
    "ids",
    [
        [2],
        [2, BEGIN],
        [2, BEGIN, 6, 7],
        [2, BEGIN, 6, 7, 8],
        [2, *image(6, 7, 8)],
        [2, *image(6, 7, 8), 3, BEGIN, 9],
        [1, 1, 2, BEGIN, 9],  # padded on the left
        [BEGIN],
        [2, *image(6, 7, 8), *image(9, 9, 9)],
        [2, *image(6, 7, 8), 2, 1, 1],  # an answer that has ended
    ],
)
def test_what_may_follow_is_what_the_grammar_says(ids: list[int]) -> None:
    assert allowed(ImageSpans(WORDS, num_codes=3), ids) == grammar(ids, 3)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**31))
def test_whatever_a_model_likes_its_images_are_whole(num_codes: int, steps: int, seed: int) -> None:
    """Sampling from random scores, three rows at once, in another order after every step, as beams are."""
    draws = torch.Generator().manual_seed(seed)
    processor = ImageSpans(WORDS, num_codes=num_codes, max_length=steps + 1)
    ids = torch.tensor([[2], [BEGIN] if num_codes < steps else [2], [3]])
    for _ in range(steps):
        scores = processor(ids, 3 * torch.randn(3, SIZE, generator=draws))
        chosen = torch.multinomial(scores.softmax(-1), 1, generator=draws)
        ids = torch.cat([ids, chosen], dim=1)[torch.randperm(3, generator=draws)]
    for row in ids.tolist():
        spans = WORDS.codes_of(row)
        assert all(len(codes) == num_codes for codes in spans)
        assert row.count(BEGIN) == row.count(END) == len(spans), "no image is left open by the end of the answer"
        assert sum(id_ in CODES for id_ in row) == num_codes * len(spans), "codes stand inside images alone"


def test_rows_of_a_batch_are_in_different_states() -> None:
    rows = [[2, BEGIN, 6], [2, 3, BEGIN], [1, 1, 2], [BEGIN, 6, 7]]
    made = ImageSpans(WORDS, num_codes=2)(torch.tensor(rows), torch.zeros(4, SIZE))
    for row, scores in zip(rows, made, strict=True):
        assert set(scores.isfinite().nonzero().flatten().tolist()) == grammar(row, 2)


def test_forbid_begins_no_image_but_finishes_that_of_the_prompt() -> None:
    processor = ImageSpans(WORDS, num_codes=2, images="forbid")
    assert allowed(processor, [2, 3]) == TEXT
    assert allowed(processor, [2, BEGIN, 6]) == CODES
    assert allowed(processor, [2, BEGIN, 6, 7]) == {END}


def test_force_begins_the_answer_with_an_image() -> None:
    processor = ImageSpans(WORDS, num_codes=2, images="force", prompt_length=3)
    assert allowed(processor, [1, 2, 3]) == {BEGIN}
    assert allowed(processor, [2, BEGIN, 6]) == CODES, "an image that the prompt has begun is the one"
    assert allowed(processor, [1, 2, 3, *image(6, 7)]) == TEXT | {BEGIN}, "what follows is free"


def test_no_image_begins_where_it_could_not_end() -> None:
    processor = ImageSpans(WORDS, num_codes=2, max_length=7)
    assert BEGIN in allowed(processor, [2, 3, 4])
    assert BEGIN not in allowed(processor, [2, 3, 4, 5])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[2, 3, 3], [BEGIN, 6, 3]], "row 1 .* got 2 tokens of which 1 are codes"),
        ([[BEGIN, 6, 7, 8]], "row 0 .* at most 2 codes .* got 3 tokens of which 3"),
    ],
)
def test_an_image_that_can_not_be_right_is_an_error(ids: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSpans(WORDS, num_codes=2)(torch.tensor(ids), torch.zeros(len(ids), SIZE))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_codes": 0}, "num_codes must be at least 1, got 0"),
        ({"images": "never"}, "images must be one of free, forbid, force, got 'never'"),
        ({"images": "force"}, "needs prompt_length"),
        ({"num_codes": 2, "images": "force", "prompt_length": 4, "max_length": 7}, "max_length must be at least 8"),
    ],
)
def test_options_that_can_not_be_meant_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"ImageSpans: .*{message}"):
        ImageSpans(WORDS, **options)


def test_a_model_without_the_image_words_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scores must be \[B, 12\] or wider, got \[1, 11\]"):
        ImageSpans(WORDS)(torch.tensor([[2]]), torch.zeros(1, 11))
