"""The embedded seed-tiny does what its card says."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from seed_fast.cli import app
from tests.examples import example


@pytest.fixture(scope="module")
def script():
    return example("train_seed_tiny")


@pytest.fixture(scope="module")
def committed(script):
    return json.loads((script.FOLDER / script.MEASURED).read_text())


def test_retrieval_of_held_out_pairs_is_what_was_measured_and_reaches_its_bars(script, committed):
    run = CliRunner().invoke(app, ["eval", "retrieval", f"shapes:{script.PAIRS}", "--json", "--workers", "0"])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert (found["images"], found["texts"]) == (script.PAIRS, script.PAIRS)
    causal, codes = found["causal_embeddings"], found["reconstructed_codes"]
    assert min(causal["TR@1"], causal["IR@1"]) >= 80
    assert codes["R@mean"] >= causal["R@mean"] - 4
    assert found["codes_used"] >= found["codebook_size"] / 2
    for row in ("causal_embeddings", "reconstructed_codes"):
        for name, value in committed[row].items():
            assert found[row][name] == pytest.approx(value, abs=0.5), (row, name)  # another CPU rounds otherwise


def test_the_page_and_the_card_show_the_committed_measurement(script, committed):
    page = script.PAGE.read_text()
    assert script.BLOCK.search(page)
    assert script.with_table(page, committed) == page
    assert (script.FOLDER / script.CARD).read_text() == script.card(committed)


def test_the_embedded_files_stay_below_ten_megabytes(script):
    assert sum(path.stat().st_size for path in script.FOLDER.rglob("*")) <= 10_000_000
