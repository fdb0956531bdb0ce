"""`seed-fast train lm`: it learns, packed and padded alike, in every precision, and survives what fp16 brings."""

from __future__ import annotations

import json
import math

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("peft")

from seed_fast import SeedTokenizer
from seed_fast.cli import app
from seed_fast.data.tokens import open_tokens
from seed_fast.distributed import Ranks
from seed_fast.lm.batches import SequenceBatches
from seed_fast.lm.model import Lora, build, load
from seed_fast.testing import check_budget
from seed_fast.train import checkpoint
from seed_fast.train.lm import LOSS_SCALE, LOSS_SCALE_WINDOW, LanguageModelTask
from seed_fast.train.loop import LEAST_SCALE, Loop
from seed_fast.train.recipe import Recipe, Run
from tests.lm.tiny import CODEBOOK, base, store

FLOAT32 = torch.finfo(torch.float32).eps  # what differs by less in float64 is the same
RECIPE = {"batch_size": 4, "epochs": 1, "epoch_steps": 8, "lr": 3e-3, "min_lr": 1e-4, "warmup_lr": 0.0,
          "warmup_steps": 1, "cosine": "step", "clip": 1.0}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of both families and of a store."""
    folder = tmp_path_factory.mktemp("lm")
    return {"opt": base(folder / "opt"), "llama": base(folder / "llama", "llama"), "store": store(folder / "store")}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(
    places, output, *, family="opt", batches=None, run=None, full=False, checkpointed=False, double=False, **recipe
):
    torch.manual_seed(0)
    recipe = Recipe(**{**RECIPE, **recipe})
    dtype = torch.float64 if double else getattr(torch, recipe.dtype)
    language = build(places[family], codebook_size=CODEBOOK, lora=Lora(dropout=0.0), dtype=dtype, full=full)
    how = {"batch_size": 4 // recipe.accumulate, "length": 64, "tasks": {"caption": 1, "drawing": 1}, **(batches or {})}
    data = SequenceBatches(open_tokens(places["store"]), language.vocabulary, language.tokenizer, **how)
    task = LanguageModelTask(language, checkpoint_activations=checkpointed)
    if double:
        task.double()
    return Loop(
        task, data, recipe, Run(output, log_every=1, **(run or {})), Ranks(0, 1, torch.device("cpu")),
        units=task.blocks, loss_scale=(LOSS_SCALE, LOSS_SCALE_WINDOW), gives_up=False, counted="rows",
    )  # fmt: skip


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return [line["loss"] for line in lines(folder) if "loss" in line]


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_training_lowers_the_loss(places, tmp_path, family):
    assert make(places, tmp_path, family=family, epoch_steps=30, lr=1e-2)()
    found = losses(tmp_path)
    assert sum(found[-3:]) < 0.6 * sum(found[:3])
    assert lines(tmp_path)[-1]["tokens_per_s"] > 0


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_the_loss_is_that_of_transformers_for_each_sample(places, tmp_path, family):
    """Packed, padded, and alone in transformers' own model with its own mask, positions and shift; in float64."""
    packed = make(places, tmp_path / "packed", family=family, double=True).task.eval()
    plain = make(places, tmp_path / "plain", family=family, double=True).task.model
    plain.get_base_model().set_attn_implementation("eager")
    source = open_tokens(places["store"])
    how = {"batch_size": 8, "length": 64, "shuffle": False}
    found = {}
    for packing in (True, False):
        data = SequenceBatches(source, packed.vocabulary, packed.tokenizer, packing=packing, **how)
        batch = next(iter(data))
        with torch.no_grad():
            found[packing] = packed(batch)["loss"].item()
        sums = count = 0
        for row in range(8):
            for segment in range(1, int(batch["segments"][row].max()) + 1):
                inside = batch["segments"][row] == segment
                ids, labels = batch["ids"][row, inside][None], batch["labels"][row, inside][None]
                learned = int((labels[:, 1:] != -100).sum())
                with torch.no_grad():
                    sums += plain(ids, labels=labels).loss.item() * learned
                count += learned
        assert abs(found[packing] - sums / count) <= FLOAT32 * sums / count


def test_activation_checkpoints_change_nothing(places, tmp_path):
    make(places, tmp_path / "kept")()
    make(places, tmp_path / "again", checkpointed=True)()
    assert losses(tmp_path / "again") == losses(tmp_path / "kept")


@pytest.mark.parametrize(("family", "full"), [("opt", False), ("llama", False), ("opt", True)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_follows_float32(places, tmp_path, dtype, family, full):
    for name in ("float32", dtype):
        run = make(places, tmp_path / name, family=family, dtype=name, full=full)
        run()
    found, truth = (torch.tensor(losses(tmp_path / name)) for name in (dtype, "float32"))
    half = getattr(torch, dtype)  # two units in the last place of half precision
    check_budget(found.to(half), truth.double(), truth.to(half))
    saved = checkpoint.read_tensors(checkpoint.latest(tmp_path / dtype / "checkpoints"), "model")
    state = checkpoint.read_tensors(checkpoint.latest(tmp_path / dtype / "checkpoints"), "optimizer")
    assert {value.dtype for value in (*saved.values(), *state.values())} == {torch.float32}
    if dtype == "float16":
        assert lines(tmp_path / dtype)[-1]["loss_scale"] == LOSS_SCALE


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_an_overflow_is_one_skipped_step(places, tmp_path, where):
    run = make(places, tmp_path, dtype="float16")
    before, calls = {}, []

    def inject(module, arguments, terms):
        calls.append(len(calls))
        if len(calls) == 3:
            before.update({name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad})
            if where == "loss":
                return {**terms, "loss": terms["loss"] * float("inf")}
            terms["loss"].register_hook(lambda gradient: gradient * float("inf"))
        if len(calls) == 4:
            assert all(torch.equal(p, before[name]) for name, p in module.named_parameters() if p.requires_grad)
        return None

    run.task.register_forward_hook(inject)
    assert run()
    scales = [line["loss_scale"] for line in lines(tmp_path)]
    assert scales == [4.0, 4.0] + [2.0] * 6
    assert any(not torch.equal(p, before[name]) for name, p in run.task.named_parameters() if p.requires_grad)


def test_overflows_without_end_raise_nothing(places, tmp_path):
    run = make(places, tmp_path, dtype="float16", epoch_steps=20)
    run.task.register_forward_hook(lambda *call: {"loss": call[2]["loss"] * float("inf")})
    assert run()
    assert lines(tmp_path)[-1]["loss_scale"] == LEAST_SCALE


def test_the_command_leaves_an_adapter_that_load_reads(places, tmp_path):
    arguments = ["--data", places["store"], "--model", places["opt"], "-o", tmp_path / "out", "--length", 64]
    arguments += ["--batch-size", 4, "--accumulate", 1, "--steps", 6, "--lr", 0.01, "--device", "cpu", "--log-every", 1]
    done = call(*arguments, "--validation", places["store"])
    assert done.exit_code == 0, done.output
    assert "parameters, of which 15,168 learn" in done.output
    found = lines(tmp_path / "out")
    assert found[-1]["validation_perplexity"] == pytest.approx(math.exp(found[-1]["validation_loss"]))
    model, tokenizer, vocabulary = load(tmp_path / "out")
    data = SequenceBatches(open_tokens(places["store"]), vocabulary, tokenizer, batch_size=4, length=64,
                           shuffle=False, drop_last=False, tasks={"caption": 1, "drawing": 1}, seed=42)  # fmt: skip
    judged = LanguageModelTask(type(load(tmp_path / "out"))(model, tokenizer, vocabulary)).eval().validate(data)
    assert judged["loss"] == found[-1]["validation_loss"]
    changed = call(*arguments, "--validation", places["store"], "--resume", "--rank", 8)
    assert (changed.exit_code, "lora must stay" in changed.output) == (1, True), changed.output


def test_the_command_trains_a_whole_model_from_a_config(places, tmp_path):
    folder = base(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    done = call("--data", places["store"], "--model", folder, "-o", tmp_path / "out", "--full", "--length", 64,
                "--batch-size", 4, "--accumulate", 2, "--steps", 2, "--device", "cpu")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert load(tmp_path / "out").vocabulary.codebook_size == CODEBOOK


def test_stage_b_goes_on_with_the_adapter_of_stage_a(places, tmp_path):
    common = ["--data", places["store"], "--length", 64, "--batch-size", 4, "--accumulate", 1, "--device", "cpu"]
    common += ["--log-every", 1, "--lr", 0.01, "--warmup-steps", 0, "--lora-dropout", 0]
    a = call(*common, "--model", places["llama"], "-o", tmp_path / "a", "--tasks", "caption:1", "--steps", 12)
    assert a.exit_code == 0, a.output
    b = call(*common, "--model", tmp_path / "a", "-o", tmp_path / "b", "--tasks", "caption:1", "--steps", 2)
    assert b.exit_code == 0, b.output
    assert "39,552 parameters, of which 18,208 learn" in a.output
    assert "39,552 parameters, of which 18,208 learn" in b.output
    assert losses(tmp_path / "b")[0] < 1.1 * losses(tmp_path / "a")[-1] < 0.8 * losses(tmp_path / "a")[0]
    assert load(tmp_path / "b").model.peft_config["default"].r == 16


def test_the_command_trains_codes_through_a_linear_layer(places, tmp_path):
    codebook = SeedTokenizer.from_pretrained("seed-tiny").config.codebook_size
    data = store(tmp_path / "store", codebook=codebook)
    done = call("--data", data, "--model", places["opt"], "-o", tmp_path / "out", "--codebook", "seed-tiny", "--length",
                64, "--batch-size", 4, "--accumulate", 1, "--steps", 2, "--device", "cpu",
                "--any-tokenizer")  # fmt: skip
    assert done.exit_code == 0, done.output
    model, _, vocabulary = load(tmp_path / "out")
    assert vocabulary.codebook_size == codebook
    into, out = (layer.weight[vocabulary.first_code :] for layer in (
        model.get_input_embeddings(), model.get_output_embeddings()))  # fmt: skip
    assert not torch.allclose(into, out)


def call(*arguments):
    return CliRunner().invoke(app, ["train", "lm", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "/nowhere"], 1, "/nowhere"),
        (["--model", "/nowhere"], 1, "/nowhere: no such folder, and no hub id"),
        (["--tasks", "paint:1"], 2, "tasks must be of caption, drawing, pretraining, got 'paint'"),
        (["--accumulate", "3"], 2, "batch_size must be a multiple of ranks * accumulate"),
        (["--full", "--codebook", "seed-tiny"], 2, "can't be used with --full"),
        (["--min-lr", "1"], 2, "floor must be in 0..peak"),
        (["--targets", "nothing"], 1, "nothing"),
    ],
)
def test_mistakes_are_named_before_training(places, tmp_path, arguments, code, message):
    common = ["--data", places["store"], "--model", places["opt"], "-o", tmp_path / "out", "--device", "cpu"]
    result = call(*common, "--batch-size", 4, "--accumulate", 1, "--steps", 2, "--length", 64, *arguments)
    assert (result.exit_code, message in result.output) == (code, True), result.output
    assert not (tmp_path / "out" / "checkpoints").exists()
