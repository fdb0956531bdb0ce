"""A language model knows whose codes it learned, and isn't used with another tokenizer's by mistake."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("peft")

from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.cli import app
from seed_fast.data.shards import WHOLE
from seed_fast.data.tokens import TokenizerIdentity, TokensWriter, open_tokens
from seed_fast.lm.image_tokenizer import FILE, OtherTokenizer, check_identity, read_identity, write_identity
from seed_fast.model.weight_hashes import FIELDS, encoder_hash
from tests.lm import tiny

SIZES = {"image_size": 16, "patch_size": 8, "vit_dim": 16, "vit_depth": 1, "vit_heads": 2, "vit_ffn_dim": 16}
SIZES |= {"qformer_dim": 16, "qformer_depth": 1, "qformer_heads": 2, "qformer_ffn_dim": 16, "num_codes": 4}
SIZES |= {"codebook_size": tiny.CODEBOOK, "code_dim": 4, "decoder_depth": 1, "decoder_heads": 2, "generation_dim": 8}
HERE, ELSEWHERE = TokenizerIdentity("here", "aa", 24, 4, "a1"), TokenizerIdentity("elsewhere", "bb", 24, 4, "b2")


def tokenizer(**changes) -> SeedTokenizer:
    torch.manual_seed(0)
    tok = SeedTokenizer(SeedConfig(**{**SIZES, **changes})).eval()
    tok.trained = True
    return tok


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_hash_is_of_all_that_decides_codes_and_of_nothing_else(tmp_path):
    tok = tokenizer()
    value = encoder_hash(tok)
    tok.save_pretrained(tmp_path)
    assert encoder_hash(SeedTokenizer.from_pretrained(tmp_path)) == value

    with torch.no_grad():
        tok.generator.blocks[0].mlp.fc1.weight.add_(1)
        assert encoder_hash(tok) == value, "a decoder decides no code"
        tok.quantizer.codebook[[1, 2]] = tok.quantizer.codebook[[2, 1]]
        assert encoder_hash(tok) != value
    for changes in ({"resize": "bilinear"}, {"vit_heads": 4}, {"qformer_heads": 4}):
        assert encoder_hash(tokenizer(**changes)) != value, changes  # the weights are the same
    assert encoder_hash(tokenizer(decoder_heads=1)) == value
    assert set(FIELDS) <= set(asdict(SeedConfig()))


def test_every_weight_that_changes_a_code_changes_the_hash():
    tok = tokenizer()
    value = encoder_hash(tok)
    pixels = torch.randn(1, 3, 16, 16)
    tok.encode_pixels(pixels).float()
    causal = tok.causal_embeddings(pixels)
    tok.quantizer.encode_task(causal).sum().backward()
    parts = {name: p for name, p in tok.named_parameters() if p.grad is not None}
    assert len(parts) > 20
    for name, p in [*parts.items(), ("quantizer.codebook", tok.quantizer.codebook)]:
        with torch.no_grad():
            before = p.flatten()[-1].item()
            p.view(-1)[-1] += 1
            assert encoder_hash(tok) != value, name
            p.view(-1)[-1] = before
    assert encoder_hash(tok) == value


def test_identities_compare_by_the_best_that_both_have():
    assert HERE.compare(replace(HERE, name="moved", weights="cc")) is True
    assert HERE.compare(replace(HERE, encoder="cc")) is False
    assert HERE.compare(replace(HERE, encoder=None)) is True
    assert HERE.compare(TokenizerIdentity("here", None, 24, 4)) is None
    assert HERE.compare(replace(HERE, codebook_size=25)) is False
    assert HERE.is_same(TokenizerIdentity("here", None, 24, 4))
    assert not HERE.is_same(TokenizerIdentity("there", None, 24, 4))


def test_a_mismatch_names_both_and_what_is_not_known_is_a_note(tmp_path):
    notes: list[str] = []
    check_identity(tmp_path, HERE, "--model x", note=notes.append)
    assert len(notes) == 1
    assert "doesn't say whose codes it learned" in notes[0]
    write_identity(tmp_path, HERE)
    assert read_identity(tmp_path) == HERE
    with pytest.raises(OtherTokenizer, match=r"learned the codes of here \(weights a1.*elsewhere \(weights b2"):
        check_identity(tmp_path, ELSEWHERE, "--model x", note=notes.append)
    check_identity(tmp_path, ELSEWHERE, "--model x", anyway=True, note=notes.append)
    check_identity(tmp_path, TokenizerIdentity("imported", None, 24, 4), "--data x", note=notes.append)
    assert len(notes) == 3
    assert notes[2].endswith("whether they are the same isn't known")
    check_identity(tmp_path, replace(HERE, name="moved"), "--model x", note=notes.append)
    assert len(notes) == 3
    (tmp_path / FILE).write_text('{"name": 3}')
    with pytest.raises(ValueError, match=f"{FILE}: must say whose codes"):
        read_identity(tmp_path)


def store_of(folder: Path, identity: TokenizerIdentity) -> Path:
    """The samples of `tiny.store` as codes of another tokenizer."""
    source = open_tokens(tiny.store(folder.with_name(f"{folder.name}-plain")))
    writer = TokensWriter(folder, identity, WHOLE)
    writer.open({"inputs": "tiny"}, resume=False)
    writer.append([source[number] for number in range(len(source))], next_place=1)
    writer.finish()
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with two stores, a base, and an adapter that learned the codes of "here"."""
    folder = tmp_path_factory.mktemp("trained")
    store_of(folder / "here", HERE), store_of(folder / "elsewhere", ELSEWHERE)
    tiny.base(folder / "base")
    result = train(folder, "here", "base", "adapter")
    assert result.exit_code == 0, result.output
    return folder


def train(folder: Path, data: str, model: str, output: str, *options: object):
    sizes = ("--steps", 2, "--batch-size", 4, "--accumulate", 1, "--length", 32, "--device", "cpu", "--save-every", 1)
    return run(
        "train", "lm", "--data", folder / data, "--model", folder / model, "-o", folder / output, *sizes, *options
    )


def test_training_writes_down_whose_codes_were_learned(trained):
    assert read_identity(trained / "adapter") == HERE


def test_training_refuses_codes_of_another_tokenizer(trained):
    for options in (
        ("elsewhere", "adapter", "more"),  # an adapter goes on
        ("here", "base", "new", "--validation", trained / "elsewhere"),
    ):
        result = train(trained, *options)
        assert result.exit_code == 1, result.output
        assert "codes of here (weights a1" in result.output
        assert "elsewhere (weights b2" in result.output
        assert "Traceback" not in result.output
        assert not (trained / options[2]).exists()
    result = train(trained, "elsewhere", "base", "adapter")
    assert result.exit_code == 2, result.output  # another run's folder
    assert read_identity(trained / "adapter") == HERE
    result = train(trained, "elsewhere", "base", "adapter", "--resume", "--steps", 3)
    assert result.exit_code == 1, result.output
    assert "elsewhere (weights b2" in result.output
    assert read_identity(trained / "adapter") == HERE
    result = train(trained, "elsewhere", "adapter", "more", "--any-tokenizer")
    assert result.exit_code == 0, result.output
    assert "note:" in result.output
    assert read_identity(trained / "more") == ELSEWHERE


def test_an_adapter_from_before_gets_a_note(trained, tmp_path):
    import shutil

    shutil.copytree(trained / "adapter", tmp_path / "old", ignore=shutil.ignore_patterns("checkpoints", FILE))
    result = train(trained, "here", tmp_path / "old", tmp_path / "new", "--base", trained / "base")
    assert result.exit_code == 0, result.output
    assert "doesn't say whose codes it learned" in result.output
    assert read_identity(tmp_path / "new") == HERE


def test_codes_through_a_layer_must_be_those_of_the_data(trained, tmp_path):
    tok = tokenizer()
    tok.save_pretrained(tmp_path / "tok")
    result = train(trained, "here", "base", tmp_path / "new", "--codebook", tmp_path / "tok")
    assert result.exit_code == 1
    assert "--codebook" in result.output
    assert "here (weights a1" in result.output
    store_of(tmp_path / "own", TokenizerIdentity.of_tokenizer(tok, "own"))
    result = train(trained, tmp_path / "own", "base", tmp_path / "new", "--codebook", tmp_path / "tok")
    assert result.exit_code == 0, result.output


def test_a_model_is_not_used_with_another_tokenizer(trained, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    tok = tokenizer()
    tok.save_pretrained("own")
    with torch.no_grad():
        tok.quantizer.codebook[[1, 2]] = tok.quantizer.codebook[[2, 1]]
    tok.save_pretrained("other")
    store_of(tmp_path / "data", TokenizerIdentity.of_tokenizer(SeedTokenizer.from_pretrained("own"), "own"))
    assert train(trained, tmp_path / "data", "base", tmp_path / "lm").exit_code == 0
    Image.radial_gradient("L").save("a.png")
    caption = ("caption", "a.png", "--lm", "lm", "--max-tokens", 3, "--model")
    assert run(*caption, "own").exit_code == 0
    result = run(*caption, "other")
    assert result.exit_code == 1
    assert "lm learned the codes of own" in result.output
    assert "--model other has those of other" in result.output
    result = run(*caption, "other", "--any-tokenizer")
    assert result.exit_code == 0
    assert "note:" in result.output
    monkeypatch.setattr("seed_fast.generate.pictures.open_pipeline", lambda *_, **__: None)
    result = run("draw", "a", "--lm", "lm", "--model", "other", "--num-codes", 4, "--pictures", "p", "--decoder", "d")
    assert result.exit_code == 1, result.output
    assert "lm learned the codes of own" in result.output


def test_the_committed_model_names_the_embedded_tokenizer():
    from tests.examples import example

    folder = example("train_seed_opt_tiny").FOLDER
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    assert read_identity(folder) == TokenizerIdentity.of_tokenizer(tok, "seed-tiny")
