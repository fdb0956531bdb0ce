"""Running the stages: what is timed is what encode computes, parts are put back, GPU work is found in a trace."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
import torch

from seed_fast import SeedTokenizer
from seed_fast.profile.measure import (
    PARTS,
    STAGES,
    Encoding,
    affordable,
    count_calls,
    gpu_work,
    measure,
    write_trace,
)
from seed_fast.profile.run import photo

PLANS = ["plain", "absorbed", "projected"]


@pytest.fixture(params=PLANS)
def encoding(request):
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    return Encoding(tok if request.param == "plain" else tok.fast(cross_attention=request.param), [photo()] * 2)


@contextmanager
def nothing(name):
    yield


def test_the_stages_make_the_codes_of_encode(encoding):
    images = encoding.processor(encoding.files)
    assert torch.equal(encoding.run(nothing), encoding.tok.encode(images))


def test_every_round_has_a_time_for_the_whole_each_stage_and_each_part(encoding):
    samples = measure(encoding, rounds=2)
    assert list(samples.seconds) == [*STAGES, *PARTS]
    assert {len(times) for times in [samples.wall, *samples.seconds.values(), *samples.idle.values()]} == {2}
    for turn, wall in enumerate(samples.wall):
        assert 0 < sum(samples.seconds[name][turn] for name in STAGES) <= wall
        assert all(0 <= samples.idle[name][turn] <= samples.seconds[name][turn] for name in samples.seconds)
    assert samples.launches.keys() == samples.seconds.keys() - {"decode+resize"}


def test_a_batch_that_takes_too_long_becomes_smaller_and_one_image_has_fewer_blocks(encoding):
    asked = Encoding(encoding.tok, [photo()] * 8)
    same, predicted = affordable(asked, seconds=1000)
    assert same is asked
    one = predicted / 8
    fewer, _ = affordable(asked, seconds=one * 40)  # several images fit, fewer than would if there were no noise
    assert 1 <= len(fewer.files) <= 8
    least, _ = affordable(asked, seconds=1e-6)
    assert (len(least.files), least.blocks) == (1, 1)
    assert torch.equal(least.run(nothing), least.run(nothing))
    assert len(encoding.tok.vit.blocks) == encoding.tok.config.vit_depth


def test_blocks_that_did_not_run_are_counted(encoding):
    depth = encoding.tok.config.vit_depth
    some = Encoding(encoding.tok, encoding.files, blocks=1)
    samples = measure(some, rounds=1)
    assert depth > 1
    assert samples.seconds["ViT"][0] < samples.wall[0]
    assert sum(samples.seconds[name][0] for name in STAGES) <= samples.wall[0]
    assert "ViT" not in samples.launches


def test_without_time_for_a_second_pass_the_first_is_the_result(encoding):
    samples = measure(encoding, rounds=5, seconds=0)
    assert samples.warming_up
    assert len(samples.wall) == 1
    assert samples.launches["Q-Former"] > 0


def test_parts_are_every_attention_and_ffn_once_and_are_put_back(encoding):
    encoding.run(nothing)
    for _ in range(2):  # twice: a part left wrapped would count double
        seen = []

        @contextmanager
        def note(name, seen=seen):
            seen.append(name)
            yield

        encoding.run_parts(note)
        config, plan = encoding.tok.config, encoding.tok is not None and type(encoding.tok).__name__ == "FastTokenizer"
        assert seen.count("Q-Former/FFN") == config.qformer_depth
        assert seen.count("Q-Former/self-attention") == config.qformer_depth - plan
        projections = plan and not encoding.tok.qformer.absorbed
        assert seen.count("Q-Former/cross-attention") == 2 + projections
    if not plan:
        assert not any("forward" in vars(module) for module in encoding.tok.modules())


def test_calls_of_a_stage_hold_those_of_its_parts_and_no_views():
    tok = SeedTokenizer.from_pretrained("seed-tiny")
    # "absorbed" in float32 on a CPU trades launches, which cost little there, for faster products.
    plain, plan = (count_calls(Encoding(each, [photo()])) for each in (tok, tok.fast(cross_attention="projected")))
    assert plain["nearest code"] == 4  # two linear maps, tanh, the lookup
    assert plain["Q-Former/FFN"] == 5 * tok.config.qformer_depth  # two linear maps, GELU, residual, norm
    for counts in (plain, plan):
        assert sum(counts[name] for name in PARTS) <= counts["Q-Former"]
    assert plan["Q-Former"] < plain["Q-Former"]


def test_a_trace_names_the_stages_and_leaves_nothing_else_behind(encoding, tmp_path):
    write_trace(encoding, tmp_path / "new" / "trace.json")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["trace.json"]
    events = json.loads((tmp_path / "new" / "trace.json").read_text())["traceEvents"]
    named = {event["name"] for event in events if event.get("cat") == "user_annotation"}
    assert named >= {*STAGES, *PARTS}
    assert gpu_work(events) == {name: (0, 0.0) for name in (STAGES | PARTS) if name != "decode+resize"}


def test_work_on_a_gpu_belongs_to_the_stage_that_launched_it():
    def event(cat, name, ts, dur, correlation=None, tid=1):
        args = {} if correlation is None else {"correlation": correlation}
        return {"cat": cat, "name": name, "ts": ts, "dur": dur, "tid": tid, "args": args}

    events = [
        event("user_annotation", "ViT", 0, 100),
        event("user_annotation", "Q-Former", 100, 100),
        event("gpu_user_annotation", "Q-Former", 0, 1000),  # the same range as the GPU saw it: no launch
        event("cuda_runtime", "cudaLaunchKernel", 10, 5, 1),
        event("cuda_runtime", "cudaMemcpyAsync", 20, 5, 2),
        event("cuda_driver", "cuLaunchKernel", 150, 5, 3),
        event("cuda_runtime", "cudaLaunchKernel", 160, 5, 4),
        event("cuda_runtime", "cudaLaunchKernel", 160, 5, 5, tid=2),  # another thread's
        event("kernel", "gemm", 110, 30, 1),  # runs while the host is in the next stage
        event("gpu_memcpy", "copy", 130, 30, 2),  # overlaps the kernel by 10
        event("kernel", "gelu", 500, 10, 3),
        event("kernel", "gemm", 600, 10, 4),
        event("kernel", "foreign", 700, 10, 5),
    ]
    assert gpu_work(events) == {"ViT": (1, pytest.approx(50e-6)), "Q-Former": (2, pytest.approx(20e-6))}
