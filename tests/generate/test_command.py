"""`seed-fast caption` and `seed-fast draw`, in this process: lines in, lines out, exit codes, one-line errors."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.cli import app
from seed_fast.data.tokens import TokenizerIdentity
from seed_fast.generate.captioning import caption
from seed_fast.generate.drawing import draw
from seed_fast.lm.image_tokenizer import write_identity
from seed_fast.lm.model import LanguageModel
from tests.lm.tiny import CODEBOOK
from tests.pictures import encoded, picture, write_files

SMALL = {"image_size": 16, "vit_depth": 1, "qformer_depth": 2, "decoder_depth": 1, "num_codes": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel) -> Path:
    """The language model, saved."""
    folder = tmp_path_factory.mktemp("lm")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tok(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of images with as many codes as the language model has words for."""
    torch.manual_seed(0)
    config = SeedConfig.preset("seed-tiny").to_dict() | SMALL | {"codebook_size": CODEBOOK}
    folder = tmp_path_factory.mktemp("tok") / "saved"
    SeedTokenizer(SeedConfig.from_dict(config)).save_pretrained(folder)
    return folder


@pytest.fixture
def run() -> Callable:
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments)])


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_draw_prints_a_line_per_text_in_order(run: Callable, folder: Path, lm: LanguageModel, tmp_path: Path) -> None:
    texts = ["a red circle", "a", "a big green square a small blue circle"]
    expected = [
        {"text": text, "codes": codes}
        for text, codes in zip(texts, draw(*lm, texts, num_codes=5).tolist(), strict=True)
    ]
    result = run("draw", *texts, "--lm", folder, "--num-codes", 5, "--batch-size", 2)
    assert (result.exit_code, lines(result.stdout)) == (0, expected), result.stderr

    (tmp_path / "texts").write_text(f"{texts[0]}\n\n{json.dumps({'text': texts[1]})}\n  {texts[2]}\n")
    options = ("--file", tmp_path / "texts", "-o", tmp_path / "codes.jsonl", "--num-codes", 5)
    result = run("draw", "--lm", folder, *options)
    assert (result.exit_code, result.stdout) == (0, "")
    assert lines((tmp_path / "codes.jsonl").read_text()) == expected
    assert not list(tmp_path.glob("*.partial"))

    # what was drawn can be described
    result = run("caption", "--codes", tmp_path / "codes.jsonl", "--lm", folder, "--max-tokens", 6)
    said = caption(*lm, [each["codes"] for each in expected], max_tokens=6)
    assert lines(result.stdout) == [{"path": path, "text": text} for path, text in zip(texts, said, strict=True)]


def test_caption_describes_the_images_it_can_read(
    run: Callable, folder: Path, tok: Path, lm: LanguageModel, tmp_path: Path
) -> None:
    names = [f"{number}.png" for number in range(5)]
    write_files(tmp_path / "in", {name: encoded(picture(number), "PNG") for number, name in enumerate(names)})
    (tmp_path / "in" / "2.png").write_bytes(b"torn")
    options = ("--lm", folder, "--model", tok, "--batch-size", 2, "--max-tokens", 8)
    result = run("caption", tmp_path / "in", *options)
    good = [str(tmp_path / "in" / name) for name in names if name != "2.png"]
    expected = caption(*lm, SeedTokenizer.from_pretrained(tok).encode(good), max_tokens=8)
    assert result.exit_code == 3, result.stderr
    assert lines(result.stdout) == [{"path": path, "text": text} for path, text in zip(good, expected, strict=True)]
    assert result.stderr.count("skipped: ") == 1
    assert "2.png" in result.stderr


def test_an_image_without_finite_embeddings_is_skipped_and_the_others_go_on(
    run: Callable, folder: Path, tok: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path / "in", {f"{number}.png": encoded(picture(number), "PNG") for number in range(3)})
    query_embeddings = SeedTokenizer.query_embeddings

    def broken(self: SeedTokenizer, features: torch.Tensor) -> torch.Tensor:
        causal = query_embeddings(self, features).clone()
        causal[0, 0, 0] = torch.inf  # of the first image of each batch
        return causal

    monkeypatch.setattr(SeedTokenizer, "query_embeddings", broken)
    result = run("caption", tmp_path / "in", "--lm", folder, "--model", tok, "--max-tokens", 3)
    assert result.exit_code == 3, result.output
    assert [line["path"] for line in lines(result.stdout)] == [f"{tmp_path}/in/{number}.png" for number in (1, 2)]
    assert f"skipped: {tmp_path}/in/0.png: its embedding in torch.float32 is not finite" in result.stderr


def test_lines_of_codes_that_are_wrong_are_told(run: Callable, folder: Path, tmp_path: Path) -> None:
    content = ['{"path": "a", "codes": [1, 2]}', "{", '{"codes": [99]}', '{"path": "b"}', '{"codes": [3]}']
    (tmp_path / "codes").write_text("\n".join(content))
    result = run("caption", "--codes", tmp_path / "codes", "--lm", folder, "--max-tokens", 3)
    assert result.exit_code == 3
    assert [line["path"] for line in lines(result.stdout)] == ["a", f"{tmp_path / 'codes'}:5"]
    assert [f"codes:{number}" in result.stderr for number in range(1, 6)] == [False, True, True, True, False]


def test_sampled_drawings_differ_from_batch_to_batch_and_repeat(run: Callable, folder: Path) -> None:
    sampling = ("--top-p", 1, "--temperature", 3, "--seed", 7, "--num-codes", 5, "--batch-size", 1)
    first, second = (run("draw", "a", "a", "--lm", folder, *sampling).stdout for _ in range(2))
    assert first == second
    one, other = lines(first)
    assert one["codes"] != other["codes"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["draw", "--lm", "LM"], 2, "give texts, or --file FILE"),
        (["caption", "--lm", "LM"], 2, "give images, or --codes FILE"),
        (["draw", "a", "--lm", "nowhere"], 1, "nowhere"),
        (["draw", "a", "--lm", "LM", "--dtype", "int8"], 2, "--dtype must be one of"),
        (["draw", "a", "--lm", "LM", "--top-p", "2"], 2, "top_p must be above 0 and at most 1, got 2.0"),
        (["draw", "a", "--lm", "LM", "--pictures", "out"], 2, "--pictures FOLDER and --decoder FOLDER belong together"),
        (["draw", "a", "--lm", "LM", "-o", "."], 2, "--output must be a file name, got a folder"),
        (["caption", "missing.png", "--lm", "nowhere"], 2, "no such file or folder: missing.png"),
        (["caption", ".", "--lm", "LM"], 1, "must have the tokenizer's 2048 codes as image tokens, got 24"),
        (["draw", "a " * 60, "--lm", "LM"], 1, "must leave room for 34 of the model's 64 positions"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    run: Callable, folder: Path, arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*(folder if argument == "LM" else argument for argument in arguments))
    told = [line for line in result.stderr.splitlines() if "untrained" not in line]
    assert (result.exit_code, len(told)) == (code, 1), result.output
    assert message in told[0]
    assert not list(tmp_path.iterdir())


def test_pictures_without_diffusers_name_the_install_line(run: Callable, folder: Path, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "diffusers" else find(name))
    result = run("draw", "a", "--lm", folder, "--pictures", "out", "--decoder", "somewhere")
    assert result.exit_code == 1
    assert "pip install 'seed_fast[draw]'" in result.stderr


def test_pictures_are_numbered_over_all_batches_and_each_has_its_own_seed(
    run: Callable, folder: Path, tok: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def pipeline(*, generator: list[torch.Generator], **_: object) -> SimpleNamespace:
        seeds.extend(each.initial_seed() for each in generator)
        return SimpleNamespace(images=[Image.new("RGB", (4, 4), (each.initial_seed(), 0, 0)) for each in generator])

    monkeypatch.setattr("seed_fast.generate.pictures.open_pipeline", lambda *_, **__: pipeline)
    options = ("--lm", folder, "--model", tok, "--num-codes", 5, "--batch-size", 2, "--seed", 7, "--steps", 1)
    result = run("draw", "a", "a", "a", *options, "--pictures", tmp_path / "out", "--decoder", "unused")
    assert result.exit_code == 0, result.output
    assert len(lines(result.stdout)) == 3
    assert seeds == [7, 8, 9]
    assert sorted(os.listdir(tmp_path / "out")) == [f"{number:06d}.png" for number in range(3)]
    assert [Image.open(tmp_path / "out" / f"{number:06d}.png").getpixel((0, 0))[0] for number in range(3)] == seeds


def test_lines_that_are_no_codes_of_the_tokenizer_are_told(run: Callable, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = tmp_path / "lm"
    shutil.copytree(folder, model)
    write_identity(model, TokenizerIdentity("tiny", None, CODEBOOK, 5))
    bad = ["[1, 2]", '{"codes": [1.0, 2, 3, 4, 5]}', '{"codes": ["1", 2, 3, 4, 5]}', '{"codes": [true, 2, 3, 4, 5]}']
    bad += ['{"codes": [1, 2, 3, 4]}', '{"codes": []}', f'{{"codes": [1, 2, 3, 4, {CODEBOOK}]}}', '{"codes": 3}']
    bad += ['{"codes": [-1, 2, 3, 4, 5]}', "[" * 100_000, f'{{"codes": [{10**300}, 2, 3, 4, 5]}}', "\xff"]
    lines_ = ['\ufeff{"path": "a", "codes": [1, 2, 3, 4, 5]}', *bad]
    (tmp_path / "codes").write_text("\n".join(lines_), encoding="utf-8")
    result = run("caption", "--codes", tmp_path / "codes", "--lm", model, "--max-tokens", 3)
    assert result.exit_code == 3, result.output
    assert [line["path"] for line in lines(result.stdout)] == ["a"]
    told = [line for line in result.stderr.splitlines() if "skipped" in line]
    assert len(told) == len(bad)
    for number, line in enumerate(told, 2):
        assert f"codes:{number}: expected a JSON line with codes: " in line
        assert len(line) < 300


def test_captions_in_any_encoding_are_drawn_and_a_missing_file_leaves_nothing(
    run: Callable, folder: Path, tmp_path: Path
) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "texts").write_text("a red circle\n", encoding=encoding)
        result = run("draw", "--file", tmp_path / "texts", "--lm", folder, "--num-codes", 5)
        assert [line["text"] for line in lines(result.stdout)] == ["a red circle"], result.output
    for command in (("draw", "--file"), ("caption", "--codes")):
        result = run(*command, tmp_path / "txts", "--lm", folder, "-o", tmp_path / "out")
        assert result.exit_code == 2
        assert f"{tmp_path}/txts: no such file" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_link_given_as_output_stays(run: Callable, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("target")
    options = ("--lm", folder, "--num-codes", 5)
    assert run("draw", "a", *options, "-o", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out").is_symlink()
    assert len(lines((tmp_path / "target").read_text())) == 1
    assert len(lines(run("draw", "a", *options, "-o", "-").stdout)) == 1
    os.mkfifo(tmp_path / "pipe")
    assert run("draw", "a", *options, "-o", tmp_path / "pipe").exit_code == 2
