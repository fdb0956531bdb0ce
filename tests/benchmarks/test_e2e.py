"""End-to-end benchmarks: truth in float64, what counts as wrong, and the bars as data."""

from __future__ import annotations

import json
import re

import pytest
import torch

from benchmarks import measure, results, run
from benchmarks.catalog import GROUPS
from benchmarks.e2e.encode import COMPILED, ENCODE, FAST, OFFICIAL, PLAIN, QFORMER, model
from benchmarks.e2e.truth import float64_codes
from seed_fast.cli.bench import BenchOptions
from seed_fast.profile.cost import costs

PARTS = [QFORMER, ENCODE]


@pytest.fixture(params=PARTS, ids=lambda benchmark: benchmark.op)
def part(request):
    """(benchmark, case, inputs, truth) of seed-tiny."""
    case = request.param.case("seed-tiny, B=8")
    inputs = request.param.inputs(case, "cpu", 0)
    return request.param, case, inputs, request.param.truth(inputs, case)


def test_truth_is_float64_and_leaves_the_model_as_it_was(part):
    benchmark, case, inputs, truth = part
    tok = model("seed-tiny", benchmark.op, "cpu").float32
    before = {name: value.clone() for name, value in tok.state_dict().items()}
    (x,) = inputs.values()
    double = type(tok)(tok.config).double()
    double.load_state_dict(tok.state_dict())
    with torch.no_grad():
        causal = double.query_embeddings(double.image_features(x.double()) if x.ndim == 4 else x.double())
        torch.testing.assert_close(truth.z, double.quantizer.encode_task(causal), rtol=1e-12, atol=1e-12)
    assert 0 < truth.error < 1e-5
    benchmark.truth(inputs, case)
    assert all(
        value.dtype == torch.float32 and torch.equal(value, before[name]) for name, value in tok.state_dict().items()
    )


def test_codes_depend_on_the_image_so_that_equal_ones_mean_something(part):
    codes = part[3].float32
    assert len(codes.unique()) > 64
    assert not torch.equal(codes[0], codes[1])


@pytest.mark.parametrize("name", [FAST["float32"], FAST["bfloat16"], PLAIN, OFFICIAL])
def test_providers_that_compute_codes_are_right_and_their_share_is_told(part, name):
    benchmark, case, inputs, truth = part
    provider = benchmark.provider(name)
    wrong, note = benchmark.check(case, provider, provider.start(inputs, case, "cpu")(), inputs, truth)
    assert wrong == ""
    assert note.endswith("% of codes equal to float32")


def test_a_code_that_rounding_does_not_explain_is_wrong(part):
    benchmark, case, inputs, truth = part
    distances = torch.cdist(truth.z, truth.codebook)
    codes = truth.float32.clone()
    codes[0, 0] = distances[0, 0].argmax()
    for name in (FAST["float32"], FAST["bfloat16"], PLAIN, OFFICIAL):
        wrong, _ = benchmark.check(case, benchmark.provider(name), codes, inputs, truth)
        assert wrong == "1 of 256 codes differ from float64's by more than rounding explains"
    runner_up = codes.clone()
    runner_up[0] = truth.float32[0]
    runner_up[1] = distances[1].topk(2, largest=False).indices[:, 1]
    half, single = (benchmark.check(case, benchmark.provider(FAST[d]), runner_up, inputs, truth)[0]
                    for d in ("bfloat16", "float32"))  # fmt: skip
    assert "codes differ" in single
    assert half == "" or int(half.split()[0]) < int(single.split()[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda codes: codes.int(), r"must be int64 \[B, 32\], got torch.int32"),
        (lambda codes: codes[:, :31], r"got torch.int64 \[8, 31\]"),
        (lambda codes: codes - 1000, "outside of the codebook"),
    ],
)
def test_what_is_no_code_is_wrong(part, change, message):
    benchmark, case, inputs, truth = part
    wrong, note = benchmark.check(case, benchmark.provider(OFFICIAL), change(truth.float32), inputs, truth)
    assert re.search(message, wrong)
    assert note == ""


def test_both_forms_of_cross_attention_are_measured_at_full_size():
    rivals = [provider.name for provider in QFORMER.providers if provider.name.endswith(", projected")]
    assert rivals == [f"{FAST[dtype]}, projected" for dtype in ("float32", "bfloat16")]
    assert all("cpu" in QFORMER.provider(name).devices for name in rivals)
    batches = {case.shape["images"] for case in QFORMER.cases if case.name.startswith("seed-2") and not case.full}
    assert {1, 8} <= batches


def test_compilation_is_limited_and_left_out_where_it_is_all_that_takes_time():
    compiled = ENCODE.provider(COMPILED)
    assert compiled.compile_limit is not None
    assert compiled.unsuited(ENCODE.case("seed-tiny, B=8"))
    assert not compiled.unsuited(ENCODE.case("seed-2, B=8"))


def test_only_the_first_images_of_a_large_batch_are_checked():
    tok = model("seed-tiny", "qformer", "cpu").float32
    features = torch.randn(10, tok.config.num_tokens, tok.config.vit_dim)
    truth = float64_codes(tok, features, lambda tok, x: tok.query_embeddings(x))
    assert truth.float32.shape == (8, 32)


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
def test_compiled_blocks_share_the_weights_and_leave_the_modules_eager():
    made = model("seed-tiny", "encode", "cpu")
    plain, compiled = made.plain(torch.float32), made.compiled(torch.float32)
    ours, theirs = dict(plain.named_parameters()), dict(compiled.named_parameters())
    assert all(theirs[name] is parameter for name, parameter in ours.items())
    assert plain.vit.blocks[0]._compiled_call_impl is None
    assert compiled.vit.blocks[0]._compiled_call_impl is not None


def test_bars_name_cases_and_providers_that_exist():
    targets = {}
    for benchmark in GROUPS["e2e"].values():
        for bar in benchmark.bars:
            assert bar.device in benchmark.case(bar.case).devices
            assert bar.device in benchmark.provider(bar.fast).devices
            assert all(benchmark.provider(name) for name in bar.slow)
            targets[benchmark.op, bar.case, bar.fast, bar.metric] = bar.target
    assert targets["qformer", "seed-2, B=8", FAST["float32"], "wall"] == 1.25
    assert targets["qformer", "seed-2, B=8", FAST["bfloat16"], "wall"] == 2.3
    assert targets["encode", "seed-2, B=1", FAST["bfloat16"], "wall"] == 2.1


def test_work_of_the_whole_is_the_work_of_its_stages():
    case, config = ENCODE.case("seed-2, B=8"), model("seed-tiny", "encode", "cpu").float32.config
    assert ENCODE.flops(case) > 8 * 530e9
    assert 0.02 < QFORMER.flops(QFORMER.case("seed-2, B=8")) / ENCODE.flops(case) < 0.03
    tiny = costs(config, 8)
    assert ENCODE.bytes(ENCODE.case("seed-tiny, B=8")) == sum(
        tiny[stage].bytes for stage in ("ViT", "Q-Former", "nearest code")
    )


def test_bars_on_memory_and_on_the_gemm_peak_are_judged_from_the_rows():
    bars = {bar.metric: bar for bar in ENCODE.bars}
    samples = {"memory": {FAST["float16"]: [100], OFFICIAL: [150]}}
    memory = measure.judge(ENCODE, bars["memory"], samples)
    assert (memory["ratio"], memory["state"], memory["slow"]) == (1.5, "not reached", OFFICIAL)
    share = measure.judge(ENCODE, bars["gemm"], samples)
    assert share["state"] == "not measured"
    row = {"op": "encode", "case": share["case"], "device": "cuda", "provider": FAST["float16"], "gemm_share": 0.8}
    measure.judge_shares([row], [memory, share])
    assert (share["ratio"], share["state"]) == (0.8, "reached")
    assert memory["ratio"] == 1.5


def test_a_normal_run_leaves_out_what_takes_minutes(monkeypatch):
    ran = []
    monkeypatch.setattr(measure, "measure_case", lambda benchmark, case, *others: ran.append(case.name) or ([], []))
    monkeypatch.setattr(measure.timing, "ceilings", lambda device, quick: {})
    measure.measure([ENCODE], devices=("cpu",))
    normal = list(ran)
    measure.measure([ENCODE], devices=("cpu",), full=True)
    assert normal == ["seed-tiny, B=1", "seed-tiny, B=8", "seed-2, B=1", "seed-2, B=8"]
    assert "seed-2, B=256" in ran[len(normal) :]


def test_a_quick_run_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "QUICK_SECONDS_PER_CASE", 0.0)
    path = tmp_path / "out.json"
    assert run.bench(BenchOptions(what="e2e", quick=True, output=path)) == 0
    assert "images/s" in capsys.readouterr().out
    measured = results.load(path)
    rows = {(row["op"], row["provider"]): row for row in measured["rows"]}
    assert set(rows) == {(op, provider.name) for op, each in GROUPS["e2e"].items() for provider in each.providers}
    assert rows["encode", COMPILED]["status"] == "left out of the quick run"
    assert rows["encode", FAST["float16"]]["status"] == "runs on cuda only"
    row, ceilings = rows["encode", FAST["bfloat16"]], measured["ceilings"]["cpu"]
    rate = row["flops"] / row["wall_ms"]["median"] * 1000 / 1e9
    assert row["gemm_share"] == pytest.approx(rate / ceilings["gemm_bfloat16_gflops"], rel=1e-3)
    assert {bar["state"] for bar in measured["bars"]} == {"not measured"}
    assert len(measured["bars"]) == sum(len(benchmark.bars) for benchmark in GROUPS["e2e"].values())
    json.loads(path.read_text())
