"""The committed seed-opt-tiny does what its card says, with nothing of ours to load it."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("transformers")

from seed_fast.cli import app
from seed_fast.data import shapes
from tests.examples import example


@pytest.fixture(scope="module")
def script():
    return example("train_seed_opt_tiny")


@pytest.fixture(scope="module")
def committed(script):
    return json.loads((script.FOLDER / script.RESULTS).read_text())


@pytest.mark.slow
def test_what_it_sees_and_draws_is_what_was_measured(script, committed):
    run = CliRunner().invoke(app, ["eval", "lm", f"shapes:{script.PICTURES}", "--lm", str(script.FOLDER), "--json"])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert found["pictures"] == 200
    assert found["captions"]["objects"] >= 80
    assert found["drawings"]["TR@1"] >= 60
    assert found["whole_images"]["sampled"]["constrained"] == 100
    assert found["perplexity"]["causal"]["mean"] < found["perplexity"]["shuffled"]["mean"]
    for part in ("captions", "drawings", "pictures_themselves"):
        for name, value in committed[part].items():
            assert found[part][name] == pytest.approx(value, abs=1.5), (part, name)  # another CPU rounds otherwise


def test_plain_transformers_loads_it(script):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(script.FOLDER)
    model = AutoModelForCausalLM.from_pretrained(script.FOLDER, dtype=torch.float32)
    caption = shapes.caption(shapes.scene(0, 0, "test"))
    words = tokenizer(f"Generate an image {caption}", add_special_tokens=False)
    prompt = torch.tensor([[tokenizer.bos_token_id, *words["input_ids"]]])
    answer = model.generate(prompt, max_new_tokens=34, do_sample=False)[0, prompt.shape[1] :]
    first, *codes, last = tokenizer.convert_ids_to_tokens(answer.tolist())
    assert (first, last) == ("<img>", "</img>")
    assert len(codes) == 32
    assert all(code.startswith("<img_") for code in codes)


def test_the_card_and_the_page_show_the_committed_measurement(script, committed):
    assert script.BLOCK.search(script.PAGE.read_text())
    assert script.with_table(script.PAGE.read_text(), committed) == script.PAGE.read_text()
    assert (script.FOLDER / script.CARD).read_text() == script.card(committed, script.WHOLE)


def test_it_stays_below_eight_megabytes(script):
    assert sum(path.stat().st_size for path in script.FOLDER.iterdir()) <= script.LARGEST
