"""Retrieval with a model: against the same steps by hand, over folders, and through the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.cli import app
from seed_fast.convert.contrast import save_contrast
from seed_fast.data import shapes
from seed_fast.data.pairs import open_pairs
from seed_fast.eval.recalls import recalls
from seed_fast.eval.retrieval import retrieval, table
from seed_fast.model.captions import WordTokenizer
from seed_fast.model.stage1 import Stage1Model
from tests.pictures import encoded, picture, write_files

SMALL = {"image_size": 16, "vit_depth": 1, "qformer_depth": 2, "decoder_depth": 1}


@pytest.fixture(scope="module")
def words() -> WordTokenizer:
    scenes = (shapes.scene(0, index) for index in range(200))
    return WordTokenizer.of_captions([*map(shapes.caption, scenes), "picture number"])


@pytest.fixture(scope="module")
def model(words: WordTokenizer) -> Stage1Model:
    torch.manual_seed(0)
    tok = SeedTokenizer(SeedConfig.from_dict(SeedConfig.preset("seed-tiny").to_dict() | SMALL))
    return Stage1Model(tok, words.size, projection_dim=24, max_tokens=48).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Stage1Model, words: WordTokenizer) -> Path:
    folder = tmp_path_factory.mktemp("model") / "saved"
    model.tokenizer.save_pretrained(folder)
    save_contrast(folder, model.state_dict(), words)
    return folder


@pytest.fixture
def run() -> Callable:
    """`run(data, ...)`: `seed-fast eval retrieval` in this process."""
    return lambda *arguments: CliRunner().invoke(app, ["eval", "retrieval", *map(str, arguments)])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A Karpathy file of six pictures, two captions each, and its images in another folder."""
    write_files(tmp_path / "images", {f"{number}.png": encoded(picture(number), "PNG") for number in range(6)})
    images = []
    for number in range(6):
        sentences = [{"raw": f"picture {number}"}, {"raw": f"a {number}"}]
        images.append({"filename": f"{number}.png", "split": "test", "sentences": sentences})
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": images}))
    return path


def test_retrieval_is_that_of_the_last_query_and_of_its_reconstruction(
    model: Stage1Model, words: WordTokenizer
) -> None:
    scenes = [shapes.scene(0, index, "test") for index in shapes.distinct(0, 30, "test")]
    texts = [shapes.caption(scene) for scene in scenes]
    tok = model.tokenizer
    with torch.no_grad():
        causal = tok.causal_embeddings(tok.preprocess([shapes.render(scene, 16) for scene in scenes]))
        codes = tok.encode([shapes.render(scene, 16) for scene in scenes])
        text = torch.nn.functional.normalize(model.text_proj(model.text_features(*words(texts))), dim=-1)

        def embedded(rows: torch.Tensor) -> np.ndarray:
            return torch.nn.functional.normalize(model.vision_proj(rows[:, -1]), dim=-1).numpy()

        expected = [recalls(embedded(rows), text.numpy(), range(30)) for rows in (causal, tok.reconstruct(codes))]
    batches = open_pairs("shapes:30", image_size=16, batch_size=7, split="test", all_captions=True)
    advanced: list[int] = []
    found = retrieval(model, words, batches, advance=advanced.append)
    assert [found.causal_embeddings, found.reconstructed_codes] == expected
    assert (found.images, found.texts, sum(advanced)) == (30, 30, 30)
    assert found.codes_used == len(codes.unique())
    without = retrieval(model, words, batches, codes=False)
    assert (without.causal_embeddings, without.reconstructed_codes) == (expected[0], None)
    assert "reconstructed" not in table(without)


class Echo:
    """A model that embeds a caption as it embeds the picture of it: every right answer scores highest."""

    def __init__(self, tokenizer: SeedTokenizer, batches: list[dict]) -> None:
        self.tokenizer = tokenizer
        self.texts = [text for batch in batches for texts in batch["captions"] for text in texts]
        self.rows = torch.cat([tokenizer.causal_embeddings(batch["pixels"])[:, -1] for batch in batches]).detach()

    def image_embedding(self, causal: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(causal[:, -1] - self.rows.mean(0), dim=-1)

    def text_embedding(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.rows[ids[:, 0]] - self.rows.mean(0), dim=-1)

    def captions(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor([[self.texts.index(text)] for text in texts])
        return ids, torch.ones_like(ids)


def test_what_is_embedded_alike_is_found(model: Stage1Model) -> None:
    batches = list(open_pairs("shapes:12", image_size=16, batch_size=5, split="val", all_captions=True))
    echo = Echo(model.tokenizer, batches)
    found = retrieval(echo, echo.captions, batches, codes=False)
    assert set(found.causal_embeddings.values()) == {100.0}


def test_the_command_prints_a_table_or_json(run: Callable, folder: Path, pictures: Path) -> None:
    options = ("--model", folder, "--images", pictures.parent / "images", "--workers", 0, "--batch-size", 4)
    shown, as_json = run(pictures, *options), run(pictures, *options, "--json")
    assert (shown.exit_code, as_json.exit_code) == (0, 0), shown.output + as_json.output
    found = json.loads(as_json.stdout)
    assert (found["images"], found["texts"], found["skipped"], found["split"]) == (6, 12, 0, "test")
    row = next(line for line in shown.stdout.splitlines() if line.startswith("reconstructed codes"))
    assert [float(value) for value in row.split()[2:]] == [
        round(value, 1) for value in found["reconstructed_codes"].values()
    ]
    assert set(found["causal_embeddings"]) == {*(f"{way}@{k}" for way in ("TR", "IR") for k in (1, 5, 10)), "R@mean"}


def test_bad_pictures_are_left_out_and_told(run: Callable, folder: Path, pictures: Path) -> None:
    (pictures.parent / "images" / "3.png").write_bytes(b"torn")
    result = run(pictures, "--model", folder, "--images", pictures.parent / "images", "--workers", 0, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["images"], found["texts"], found["skipped"]) == (3, 5, 10, 1)
    assert "1 pictures or captions were bad" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no-such-data"], 2, "no-such-data: no such file or folder"),
        (["shapes:10", "--split", "dev"], 2, "split must be one of train, val, test, got 'dev'"),
        (["shapes:10", "--dtype", "int8"], 2, "--dtype must be one of"),
        (
            ["shapes:10", "--model", "nowhere"],
            2,
            "--model nowhere: must be a folder of `seed-fast train` with contrast",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    run: Callable, folder: Path, arguments: list[str], code: int, message: str
) -> None:
    result = run(*([] if "--model" in arguments else ["--model", folder]), *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_command_measures_what_the_function_does(
    run: Callable, folder: Path, model: Stage1Model, words: WordTokenizer
) -> None:
    batches = open_pairs("shapes:20", image_size=16, batch_size=8, split="val", all_captions=True)
    expected = retrieval(model, words, batches).to_dict()
    found = json.loads(run("shapes:20", "--model", folder, "--split", "val", "--workers", 0, "--json").stdout)
    for name, value in expected.items():
        assert found[name] == value, name
    assert (
        json.loads(run("shapes:20", "--model", folder, "--no-codes", "--json", "--workers", 0).stdout)[
            "reconstructed_codes"
        ]
        is None
    )
