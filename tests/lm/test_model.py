"""Models with image tokens: what learns, what is saved, and that peft and transformers load and merge the same."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

pytest.importorskip("peft")

from seed_fast.data.tokens import TokenizerIdentity
from seed_fast.distributed import trainable
from seed_fast.lm.model import Lora, build, load, save
from seed_fast.lm.pretrained import FAMILIES, base_of
from seed_fast.lm.vocabulary import Vocabulary
from seed_fast.testing import check_budget, error_ratio
from seed_fast.train.lm import LanguageModelTask
from tests.lm.tiny import CODEBOOK, base, tokenizer

PLAIN = """
import os, sys
sys.modules["seed_fast"] = None  # an import of it is an error
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
text = "a red <img><img_00003><img_00001></img> circle"
for folder, base in zip(sys.argv[1::2], sys.argv[2::2]):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    found = {"ids": ids}
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(base)  # as the card says, from anywhere
        if model.get_input_embeddings().num_embeddings < len(tokenizer):
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model = PeftModel.from_pretrained(model, folder).eval()
        found["logits"] = model(ids).logits
        model = model.merge_and_unload()
        found["merged"] = model(ids).logits
        model.save_pretrained(folder + "/merged")
        tokenizer.save_pretrained(folder + "/merged")
        found["pipeline"] = pipeline("text-generation", folder + "/merged").model.eval()(ids).logits

        model = AutoModelForCausalLM.from_pretrained(base)  # transformers' own way to an adapter
        if model.get_input_embeddings().num_embeddings < len(tokenizer):
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.load_adapter(folder)
        found["load_adapter"] = model.eval()(ids).logits

        os.chdir(folder)  # a relative base begins where the process is
        found["auto"] = AutoPeftModelForCausalLM.from_pretrained(".").eval()(ids).logits
        for name, load in (
            ("plain", lambda: AutoModelForCausalLM.from_pretrained(".")),
            ("plain_pipeline", lambda: pipeline("text-generation", ".", tokenizer=tokenizer).model),
        ):
            try:
                found[name] = load().eval()(ids).logits
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}"
    torch.save(found, folder + "/logits.pt")
"""
VARIANTS = ("opt", "llama", "codebook")


def shaken(module):
    """As training would leave it: nothing that learns is at its initial value."""
    generator = torch.Generator().manual_seed(5)
    for _, p in trainable(module):
        p.data += 0.1 * torch.randn(p.shape, generator=generator)


def packed(ids):
    count = ids.shape[1]
    positions = torch.arange(count)[None]
    return {"ids": ids, "labels": ids.clone(), "positions": positions, "segments": torch.ones_like(ids)}


def loss_of(task, ids):
    with torch.no_grad():
        return task.eval()(packed(ids))["loss"]


def cross_entropy(logits, ids):
    return torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Folder and task of each variant, saved, and read by a process without this package; see PLAIN."""
    made = {}
    for name in VARIANTS:
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        family = "llama" if name == "llama" else "opt"
        through_layer = name == "codebook"
        untied = folder / "out" / "base" if through_layer else None
        language = build(base(folder / "base", family), codebook_size=CODEBOOK, untied=untied)
        task = LanguageModelTask(language, codebook=torch.randn(CODEBOOK, 6) if through_layer else None)
        shaken(task)
        save(language.model, language.tokenizer, folder / "out", extra=task.folded())
        made[name] = (folder, task)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", PLAIN]
    for name, (folder, _) in made.items():
        command += [str(folder / "out"), str(folder / ("out/base" if name == "codebook" else "base"))]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize("name", VARIANTS)
def test_peft_and_transformers_alone_give_and_merge_to_the_same_logits(tasks, name):
    folder, task = tasks[name]
    found = torch.load(folder / "out" / "logits.pt", weights_only=True)
    again = load(folder / "out")
    with torch.no_grad():
        assert torch.equal(again.model(found["ids"]).logits, found["logits"])
        truth = copy.deepcopy(again.model).double()(found["ids"]).logits
    for way in ("merged", "pipeline"):  # a sum of weights is rounded once more
        assert error_ratio(found[way], found["logits"], truth) <= 3, way
    for way in ("load_adapter", "auto"):
        assert torch.equal(found[way], found["logits"]), way
    peer, exact = (cross_entropy(logits, found["ids"]) for logits in (found["logits"], truth))
    check_budget(loss_of(task, found["ids"]), exact, peer)
    assert again.vocabulary == task.vocabulary
    assert not list((folder / "out").glob(".*"))


@pytest.mark.parametrize("name", VARIANTS)
def test_transformers_reads_an_adapter_folder_where_its_base_has_the_rows(tasks, name):
    """What docs/lm.md says: transformers doesn't give a base rows for new words, so a plain one is refused by it."""
    found = torch.load(tasks[name][0] / "out" / "logits.pt", weights_only=True)
    for way in ("plain", "plain_pipeline"):
        if name == "codebook":
            assert torch.equal(found[way], found["logits"])
        else:
            assert "out of bounds" in found[way], f"{way}: docs/lm.md says that this fails, and it no longer does"


def test_a_folder_has_a_card_and_no_path_of_this_machine(tasks):
    for name, (folder, _) in tasks.items():
        out = folder / "out"
        card = (out / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: peft\n")
        reference = {"codebook": "base"}.get(name, "../base")
        assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == reference
        assert f"- **Base**: `{reference}`" in card
        assert "- **Image tokenizer**: unknown" in card
        assert f'PeftModel.from_pretrained(base, "path/to/{out.name}")' in card
        for path in [*out.glob("*.json"), out / "README.md"]:
            assert str(folder) not in path.read_text(), path
    save(*build(base(folder / "licensed"), codebook_size=2)[:2], folder / "no licence")
    (folder / "licensed" / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    about = {"Data": "`shapes`", "Metrics": "loss 1.5"}
    model, words, _ = build(folder / "licensed", codebook_size=2)
    identity = TokenizerIdentity("seed-tiny", "ab", 2, 32, "cd")
    save(model, words, folder / "with licence", identity=identity, about=about)
    card = (folder / "with licence" / "README.md").read_text()
    for line in (
        "license: mit",
        "- **Licence**: mit",
        "seed-tiny (weights cd, 32 of 2 codes)",
        "- **Metrics**: loss 1.5",
    ):
        assert line in card, line
    assert "license:" not in (folder / "no licence" / "README.md").read_text()


def test_a_tree_moves_and_base_says_where_a_base_went(tasks, tmp_path, monkeypatch):
    folder, _ = tasks["opt"]
    shutil.copytree(folder, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert base_of("moved/out") == "moved/base"
    expected = torch.load(folder / "out" / "logits.pt", weights_only=True)
    for here in (load("moved/out"), load(tmp_path / "moved" / "out", base=folder / "base")):
        with torch.no_grad():
            assert torch.equal(here.model(expected["ids"]).logits, expected["logits"])
    (tmp_path / "moved" / "base").rename(tmp_path / "gone")
    with pytest.raises(OSError, match=r"moved/out: the adapter's base isn't there, give another `base`: "):
        load("moved/out")
    again = build("moved/out", codebook_size=CODEBOOK, base="gone")
    save(again.model, again.tokenizer, tmp_path / "far" / "away" / "under" / "out")
    saved = json.loads((tmp_path / "far/away/under/out" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(tmp_path / "gone")  # four up: relative would say less
    save(again.model, again.tokenizer, tmp_path / "near" / "out")
    saved = json.loads((tmp_path / "near" / "out" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == "../../gone"


def test_codes_through_a_linear_layer_are_saved_as_rows(tasks):
    """The paper's variant: a code goes in as fc(codebook[code]) and comes out by a row of its own."""
    folder, task = tasks["codebook"]
    names = [name for name, _ in trainable(task)]
    assert {"codes.fc.weight", "codes.fc.bias", "codes.markers"} <= set(names)
    assert [name.split(".")[3] for name in names if "delta" in name] == ["lm_head"]
    rows = load(folder / "out").model.get_input_embeddings().weight
    first = task.vocabulary.first_code
    parts = task.codes.codebook, task.codes.fc.weight, task.codes.fc.bias
    plain, truth = (codebook @ weight.T + bias for codebook, weight, bias in (parts, [p.double() for p in parts]))
    check_budget(rows[first : first + CODEBOOK], truth, plain)
    before = (folder / "out" / "base" / "model.safetensors").stat().st_mtime_ns
    again = build(folder / "base", codebook_size=CODEBOOK, untied=folder / "out" / "base")  # as a resumed run does
    assert not again.model.get_base_model().config.tie_word_embeddings
    assert (folder / "out" / "base" / "model.safetensors").stat().st_mtime_ns == before


def test_only_new_words_and_lora_learn_and_tied_weights_stay_tied(tmp_path):
    model, words, vocabulary = build(base(tmp_path / "base"), codebook_size=CODEBOOK, lora=Lora(rank=4))
    assert len(words) == vocabulary.first_code + CODEBOOK + 2
    inner = model.get_base_model()
    embedding, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    assert embedding.token_adapter.base_layer.weight is head.token_adapter.base_layer.weight
    assert len(embedding.token_adapter.base_layer.weight) == len(words)
    learned = dict(trainable(model))
    rows = [p for name, p in learned.items() if "lora" not in name]
    assert [list(p.shape) for p in rows] == [[CODEBOOK + 2, 32]]
    assert len(learned) == 1 + 2 * 2 * 6  # A and B of six linear layers in two blocks


def test_llama_trains_its_norms_and_opt_does_not(tmp_path):
    found = {}
    for family in ("opt", "llama"):
        model = build(base(tmp_path / family, family), codebook_size=CODEBOOK).model
        found[family] = [name for name, _ in trainable(model) if "norm" in name]
    assert (found["opt"], len(found["llama"])) == ([], 5)


def test_a_wide_embedding_keeps_its_rows(tmp_path):
    """OPT has more rows than words: new ids begin at the words, and rows are added only where they are missing."""
    folder = base(tmp_path / "base")
    words = len(tokenizer())
    model, _, vocabulary = build(folder, codebook_size=3)
    assert vocabulary.first_code == words
    assert len(model.get_base_model().get_input_embeddings().token_adapter.base_layer.weight) == words + 7
    save(model, _, tmp_path / "out")
    assert len(load(tmp_path / "out").model.get_input_embeddings().weight) == words + 7


def test_a_whole_model_is_saved_for_transformers_alone(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = base(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    language = build(folder, codebook_size=CODEBOOK, full=True)
    assert all(p.requires_grad for p in language.model.parameters())
    LanguageModelTask(language)  # as it is when training ends
    save(language.model, language.tokenizer, tmp_path / "out")
    language.model.set_attn_implementation("sdpa")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([[2, *language.vocabulary.image([1, 2]), 7]])
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, language.model.eval()(ids).logits)
        assert torch.equal(load(tmp_path / "out").model(ids).logits, plain(ids).logits)
    assert plain.lm_head.weight is plain.get_input_embeddings().weight
    assert "seed_fast" not in (tmp_path / "out" / "config.json").read_text()


def test_an_adapter_goes_on_learning(tasks):
    folder, task = tasks["llama"]
    again = build(folder / "out", codebook_size=CODEBOOK, dtype=torch.float16)
    before = {name.removeprefix("model."): p for name, p in trainable(task)}
    assert before.keys() == dict(trainable(again.model)).keys()
    assert all(torch.equal(p, before[name]) and p.dtype == torch.float32 for name, p in trainable(again.model))
    assert Lora.of_folder(folder / "out") == Lora(targets=tuple(sorted(FAMILIES["llama"].linears)), norms=True)
    with pytest.raises(ValueError, match="an adapter goes on as it is; merge it first"):
        build(folder / "out", codebook_size=CODEBOOK, full=True)


def test_an_adapter_brings_its_own_base_along(tasks, tmp_path):
    folder, _ = tasks["codebook"]
    shutil.copytree(folder / "out", tmp_path / "elsewhere")
    assert base_of(tmp_path / "elsewhere") == str(tmp_path / "elsewhere" / "base")


def test_a_killed_save_leaves_no_half_file(tmp_path, monkeypatch):
    language = build(base(tmp_path / "base"), codebook_size=CODEBOOK)
    save(language.model, language.tokenizer, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(type(language.tokenizer), "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError("full")))
    shaken(language.model)
    with pytest.raises(OSError, match="full"):
        save(language.model, language.tokenizer, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_what_is_no_such_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"one without config\.json"):
        build(tmp_path)
    folder = base(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(ValueError, match="model_type must be one of opt, llama, got 'gpt2'"):
        build(folder)
    small = base(tmp_path / "small", vocab_size=9)
    with pytest.raises(ValueError, match="must have a row for each of"):
        build(small)
    with pytest.raises(ValueError, match="must have the image tokens"):
        load(base(tmp_path / "words"))
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        Lora(rank=0)
    assert Vocabulary.of_tokenizer(build(base(tmp_path / "last"), codebook_size=2).tokenizer).codebook_size == 2


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 7\n", "a Git LFS pointer: the file itself"),
        (b"<!DOCTYPE html><html>Sign in</html>", "an HTML page"),
    ],
    ids=["pointer", "page"],
)
def test_an_error_says_what_was_downloaded_instead_of_a_file(tmp_path, name, content, what):
    folder = base(tmp_path / "opt")
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: .*{what}"):
        build(folder, codebook_size=CODEBOOK)
