"""The judgement of a language model that sees and draws: each number against its definition, then the command."""

from __future__ import annotations

import errno
import json
import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("transformers")

from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.cli import app
from seed_fast.convert.contrast import save_contrast
from seed_fast.data import shapes
from seed_fast.data.pairs import open_pairs
from seed_fast.eval import language_model as evaluation
from seed_fast.eval.results import write_results
from seed_fast.eval.retrieval import retrieval
from seed_fast.generate.captioning import caption
from seed_fast.generate.drawing import draw
from seed_fast.lm.model import LanguageModel
from seed_fast.lm.sequences import caption_sequence, drawing_prompt, drawing_sequence
from seed_fast.lm.vocabulary import Vocabulary, add_image_tokens
from seed_fast.lm.words import word_tokenizer
from seed_fast.model.captions import WordTokenizer
from seed_fast.model.stage1 import Stage1Model
from seed_fast.testing import error_ratio

CODEBOOK = 16
SMALL = {"image_size": 16, "vit_depth": 1, "qformer_depth": 2, "decoder_depth": 1, "num_codes": 6}
SCENES = [shapes.scene(0, index, "test") for index in shapes.distinct(0, 8, "test")]
TEXTS = [shapes.caption(scene) for scene in SCENES]


@pytest.fixture(scope="module")
def captions() -> WordTokenizer:
    return WordTokenizer.of_captions(shapes.caption(shapes.scene(0, index)) for index in range(300))


@pytest.fixture(scope="module")
def tower(captions: WordTokenizer) -> Stage1Model:
    torch.manual_seed(0)
    config = SeedConfig.preset("seed-tiny").to_dict() | SMALL | {"codebook_size": CODEBOOK}
    tok = SeedTokenizer(SeedConfig.from_dict(config))
    with torch.no_grad():  # a codebook of what pictures give, so that they have different codes
        pixels = tok.preprocess([shapes.render(scene, 16) for scene in SCENES])
        found = tok.quantizer.encode_task(tok.causal_embeddings(pixels)).flatten(0, 1)
        tok.quantizer.codebook.copy_(found[torch.randperm(len(found))[:CODEBOOK]])
    return Stage1Model(tok, captions.size, projection_dim=24, max_tokens=48).eval()


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    """A language model of random weights for the tower's codes."""
    from transformers import OPTConfig, OPTForCausalLM

    tokenizer = word_tokenizer(shapes.caption(shapes.scene(0, index)) for index in range(300))
    vocabulary = add_image_tokens(tokenizer, CODEBOOK)
    torch.manual_seed(0)
    size = {"hidden_size": 48, "word_embed_proj_dim": 48, "ffn_dim": 96, "num_attention_heads": 4}
    config = OPTConfig(vocab_size=len(tokenizer), num_hidden_layers=2, max_position_embeddings=96, dropout=0.0, **size)
    return LanguageModel(OPTForCausalLM(config).eval(), tokenizer, vocabulary)


def test_captions_are_judged_by_what_they_say_and_not_by_their_wording() -> None:
    scene = next(scene for scene in SCENES if len(scene.objects) == 2)
    reworded = shapes.caption(replace(scene, style=(scene.style + 2) % 4))
    one, other = scene.objects
    free = next(place for place in shapes.POSITIONS if place not in (one.position, other.position))
    wrong_place = shapes.caption(replace(scene, style=0)).replace(one.position, free, 1)
    wrong_colour = TEXTS[SCENES.index(scene)].replace(one.colour, "none", 1)
    another = next(text for text, each in zip(TEXTS, SCENES, strict=True) if each.objects != scene.objects)

    def judged(text: str) -> list[float]:
        return list(evaluation.caption_accuracy([text], [scene]).values())

    assert list(evaluation.caption_accuracy(["", ""], [scene, scene])) == ["read", "objects", "exact", "verbatim"]
    assert judged(shapes.caption(scene)) == [100, 100, 100, 100]
    assert judged(reworded) == [100, 100, 100, 0]
    assert judged(wrong_place) == [100, 100, 0, 0]
    assert judged(another) == [100, 0, 0, 0]
    assert judged(wrong_colour) == [0, 0, 0, 0]
    both = evaluation.caption_accuracy([reworded, "nothing"], [scene, scene])
    assert list(both.values()) == [50, 50, 50, 0]
    with pytest.raises(ValueError, match="captions must be as many as scenes, 8, got 1"):
        evaluation.caption_accuracy([""], SCENES)


@pytest.mark.parametrize(
    ("ids", "whole"),
    [
        ([10, 6, 7, 11], True),
        ([10, 6, 11], False),
        ([10, 6, 7, 8, 11], False),
        ([3, 10, 6, 7, 11], False),
        ([10, 6, 3, 11], False),
        ([10, 6, 7, 7], False),
        ([], False),
    ],
)
def test_an_image_is_whole_if_it_is_all_of_the_answer(ids: list[int], whole: bool) -> None:
    words = Vocabulary(first_code=6, codebook_size=4, begin_image=10, end_image=11, bos=2, eos=2, pad=1)
    assert evaluation.is_whole(words, ids, 2) is whole


def test_losses_of_codes_are_those_of_the_chain_rule(lm: LanguageModel) -> None:
    codes = torch.randint(CODEBOOK, (len(TEXTS), 6), generator=torch.Generator().manual_seed(0))
    rows = [0, 4, 7]

    def one_by_one(model: torch.nn.Module) -> torch.Tensor:
        losses = []
        for row in rows:
            ids = [*drawing_prompt(lm.vocabulary, lm.tokenizer, TEXTS[row]), lm.vocabulary.begin_image]
            for code in codes[row].tolist():
                with torch.no_grad():
                    likely = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
                ids.append(lm.vocabulary.first_code + code)
                losses.append(-likely[ids[-1]])
        return torch.stack(losses)

    found = evaluation.code_losses(lm, TEXTS, codes, batch_size=3)[rows].flatten()
    peer, truth = (one_by_one(model) for model in (lm.model, deepcopy(lm.model).double()))
    assert error_ratio(found, peer, truth) <= 2


def test_perplexity_is_that_of_each_place_and_of_all() -> None:
    losses = torch.tensor([[2.0, 8.0], [2.0, 2.0]], dtype=torch.float64).log()
    found = evaluation.perplexity(losses)
    assert found["by_place"] == pytest.approx([2, 4])
    assert found["mean"] == pytest.approx(8**0.5)


def test_the_other_order_is_a_fixed_permutation() -> None:
    order = evaluation.shuffled_order(32)
    assert sorted(order) == list(range(32)) != order == evaluation.shuffled_order(32)


def test_drawings_are_looked_up_as_reconstructed_pictures_are(tower: Stage1Model, captions: WordTokenizer) -> None:
    batches = open_pairs("shapes:8", image_size=16, batch_size=3, split="test", all_captions=True)
    expected = retrieval(tower, captions, batches).reconstructed_codes
    codes = tower.tokenizer.encode([shapes.render(scene, 16) for scene in SCENES])
    assert len(codes.unique(dim=0)) > 1
    assert evaluation.drawing_recalls(tower, captions, codes, TEXTS, batch_size=5) == expected


@pytest.fixture(scope="module")
def learned(lm: LanguageModel, tower: Stage1Model) -> tuple[LanguageModel, torch.Tensor]:
    """The model after it has learned the eight pictures by heart, both ways; and their codes, made different."""
    model, tokenizer, vocabulary = deepcopy(lm.model).train(), lm.tokenizer, lm.vocabulary
    codes = torch.randint(CODEBOOK, (len(TEXTS), 6), generator=torch.Generator().manual_seed(1))
    pairs = list(zip(codes.tolist(), TEXTS, strict=True))
    sequences = [make(vocabulary, tokenizer, *pair) for make in (caption_sequence, drawing_sequence) for pair in pairs]
    longest = max(map(len, sequences))
    ids = torch.tensor([each.ids + [vocabulary.pad] * (longest - len(each)) for each in sequences])
    labels = torch.tensor([each.labels + [-100] * (longest - len(each)) for each in sequences])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        loss = model(input_ids=ids, attention_mask=(ids != vocabulary.pad).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return LanguageModel(model.eval(), tokenizer, vocabulary), codes


def test_what_a_model_has_learned_it_says_and_draws(learned: tuple[LanguageModel, torch.Tensor]) -> None:
    """The forms of training and of generation are the same, in any batch."""
    lm, codes = learned
    for size in (3, 8):
        assert caption(*lm, codes, batch_size=size) == TEXTS
        assert torch.equal(draw(*lm, TEXTS, num_codes=6, batch_size=size), codes)
    assert set(evaluation.caption_accuracy(caption(*lm, codes), SCENES).values()) == {100.0}
    in_order, shuffled = codes, codes[:, evaluation.shuffled_order(6)]
    means = [evaluation.perplexity(evaluation.code_losses(lm, TEXTS, rows))["mean"] for rows in (in_order, shuffled)]
    assert means[0] < 1.2 < means[1]
    assert evaluation.whole_images(lm, TEXTS, 6, evaluation.DecodingStrategy()) == {"constrained": 100, "free": 100}


def test_the_command_measures_what_the_functions_do(
    lm: LanguageModel, tower: Stage1Model, captions: WordTokenizer, tmp_path: Path
) -> None:
    for name in ("lm", "tower"):
        (tmp_path / name).mkdir()
    lm.model.save_pretrained(tmp_path / "lm")
    lm.tokenizer.save_pretrained(tmp_path / "lm")
    tower.tokenizer.save_pretrained(tmp_path / "tower")
    save_contrast(tmp_path / "tower", tower.state_dict(), captions)
    options = ("--lm", tmp_path / "lm", "--model", tmp_path / "tower", "--shuffled-lm", tmp_path / "lm")
    result = run("shapes:8", *options, "-o", tmp_path / "out", "--json", "--batch-size", 3)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    expected = evaluation.evaluate(lm, tower, captions, SCENES, shuffled=lm, batch_size=3).to_dict()
    assert found["pictures"] == 8
    for name in ("perplexity", "captions", "drawings", "pictures_themselves", "whole_images"):
        assert found[name] == expected[name], name
    assert found["whole_images"]["greedy"]["constrained"] == 100 > found["whole_images"]["sampled"]["free"]
    assert json.loads((tmp_path / "out" / "lm.json").read_text()) == found
    assert (tmp_path / "out" / "perplexity.svg").read_text().rstrip().endswith("</svg>")
    assert f"{found['perplexity']['causal']['mean']:.2f}" in run("shapes:8", *options).stdout


def test_both_files_are_written_or_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = {"mean": 2.0, "by_place": [1.0, 3.0]}
    record = {"pictures": 8, "data": "shapes:8", "perplexity": {"causal": curve, "shuffled": curve}}
    (tmp_path / "lm.json").write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left") as caught:
            write_results(tmp_path, record)
    assert caught.value.filename == str(tmp_path)
    assert os.listdir(tmp_path) == ["lm.json"]
    assert (tmp_path / "lm.json").read_text() == "old"
    assert write_results(tmp_path, record) is None
    assert json.loads((tmp_path / "lm.json").read_text()) == record
    assert sorted(os.listdir(tmp_path)) == ["lm.json", "perplexity.svg"]


def run(*arguments: object):
    return CliRunner().invoke(app, ["eval", "lm", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["photos/", "--lm", "x"], 2, "photos/: no such file or folder"),
        (["shapes:8", "--lm", "x", "--model", "nowhere"], 2, "must be a folder of `seed-fast train` with contrast"),
        (["shapes:8", "--lm", "x", "--dtype", "int8"], 2, "--dtype must be one of"),
        (["shapes:8", "--split", "dev", "--lm", "x"], 2, "split must be one of train, val, test"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments: list[str], code: int, message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (code, 1)
    assert message in result.stderr


def test_a_model_for_another_codebook_is_refused(
    lm: LanguageModel, tower: Stage1Model, captions: WordTokenizer
) -> None:
    other = lm._replace(vocabulary=replace(lm.vocabulary, codebook_size=8))
    with pytest.raises(ValueError, match="must have the tokenizer's 16 codes as image tokens, got 8"):
        evaluation.evaluate(other, tower, captions, SCENES)
    with pytest.raises(ValueError, match="scenes must hold at least one"):
        evaluation.evaluate(lm, tower, captions, [])
