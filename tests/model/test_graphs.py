"""Graphs of a plan's stages: buckets, padding and turns, with a recorder that behaves like CUDA's; and on a GPU."""

from __future__ import annotations

import dataclasses
import json
import threading
from contextlib import contextmanager

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.model.graphs import BUCKETS, Graphs, in_parts
from seed_fast.testing import error_ratio

CPU = torch.device("cpu")


class FakeRecorder:
    """Replays run the stage again and, as graphs of one pool may, destroy the results of all others."""

    def __init__(self) -> None:
        self.captured: list[tuple] = []
        self.replayed: list[int] = []
        self.results: list[torch.Tensor] = []
        self.in_turn = self.capturing = False

    @contextmanager
    def turn(self):
        assert not self.in_turn
        self.in_turn = True
        yield
        self.in_turn = False

    def capture(self, stage, rows):
        assert self.in_turn
        assert not torch.is_grad_enabled()
        result = stage(rows)
        self.captured.append((*rows.shape, rows.dtype))
        self.results.append(result)

        def replay():
            assert self.in_turn
            self.replayed.append(len(rows))
            for other in self.results:
                other.fill_(-7)
            result.copy_(stage(rows))

        return replay, result

    def is_capturing(self):
        return self.capturing


def doubled(buckets=BUCKETS):
    recorder = FakeRecorder()
    graphs = Graphs(CPU, recorder=recorder, buckets=buckets)
    return graphs.stage(lambda rows: 2 * rows, (3,), torch.float32), recorder


@pytest.mark.parametrize(
    ("count", "replayed"),
    [(1, [1]), (2, [2]), (3, [4]), (5, [8]), (33, [64]), (64, [64]), (65, [64, 1]), (131, [64, 64, 4])],
)
def test_a_batch_runs_in_the_smallest_buckets_that_hold_it(count, replayed):
    stage, recorder = doubled()
    rows = torch.randn(count, 3)
    assert torch.equal(stage(rows), 2 * rows)
    assert recorder.replayed == replayed


def test_each_bucket_is_captured_once_and_only_when_it_is_needed():
    stage, recorder = doubled(buckets=(1, 4))
    assert recorder.captured == []
    for count in (3, 4, 2, 9, 3):
        stage(torch.randn(count, 3))
    assert recorder.captured == [(4, 3, torch.float32), (1, 3, torch.float32)]


def test_results_are_the_callers_own():
    recorder = FakeRecorder()
    graphs = Graphs(CPU, recorder=recorder)
    double = graphs.stage(lambda rows: 2 * rows, (3,), torch.float32)
    negate = graphs.stage(lambda rows: -rows, (3,), torch.float32)
    batches = [torch.randn(count, 3) for count in (4, 3, 4, 70)]
    made = [(double(rows), negate(double(rows))) for rows in batches]
    for rows, (first, second) in zip(batches, made, strict=True):
        assert torch.equal(first, 2 * rows)
        assert torch.equal(second, -2 * rows)


def test_what_an_earlier_batch_left_in_the_padding_changes_nothing():
    stage, _ = doubled(buckets=(4,))
    stage(torch.full((4, 3), torch.nan))
    rows = torch.randn(2, 3)
    assert torch.equal(stage(rows), 2 * rows)


def test_rows_are_converted_and_another_shape_is_named():
    stage, recorder = doubled()
    assert stage(torch.ones(2, 3, dtype=torch.float16)).dtype == torch.float32
    with pytest.raises(ValueError, match=r"plan: a batch must be \['B', 3\], got \[2, 4\]"):
        stage(torch.ones(2, 4))
    assert len(recorder.captured) == 1


def test_modes_of_autograd_mix():
    """A static tensor made in inference mode could not be written to outside of it."""
    stage, _ = doubled()
    with torch.inference_mode():
        stage(torch.randn(2, 3))
    rows = torch.randn(2, 3, requires_grad=True)
    assert torch.equal(stage(rows), 2 * rows.detach())
    with torch.inference_mode():
        assert torch.equal(stage(rows), 2 * rows)


@pytest.mark.parametrize("count", [0, 3, 70])
def test_within_a_capture_and_for_no_rows_the_stage_runs_as_it_is(count):
    stage, recorder = doubled()
    recorder.capturing = count > 0
    rows = torch.randn(count, 3)
    assert torch.equal(stage(rows), 2 * rows)
    assert recorder.captured == recorder.replayed == []


@pytest.mark.parametrize("count", [0, 1, 4, 5, 11])
def test_parts_are_small_and_make_the_whole(count):
    sizes = []

    def stage(rows):
        sizes.append(len(rows))
        return rows.sum(1).to(torch.int64)

    rows = torch.arange(3.0 * count).view(count, 3)
    assert torch.equal(in_parts(stage, rows, 4), rows.sum(1).to(torch.int64))
    assert max(sizes) <= 4
    assert sum(sizes) == count


def test_stages_of_a_plan_in_buckets_make_its_codes():
    plan = SeedTokenizer.from_pretrained("seed-tiny").fast()
    config, graphs = plan.config, Graphs(CPU, recorder=FakeRecorder(), buckets=(1, 4))
    side = config.image_size
    features = graphs.stage(plan.vit, (3, side, side), torch.float32)
    causal = graphs.stage(plan.qformer, (config.num_tokens, config.vit_dim), torch.float32)
    codes = graphs.stage(plan.nearest, (config.num_codes, config.qformer_dim), torch.float32)
    pixels = torch.randn(7, 3, side, side, generator=torch.Generator().manual_seed(0))
    for count in (7, 1, 3):
        assert torch.equal(codes(causal(features(pixels[:count]))), plan.encode(pixels[:count]))


def extra_memory(call, trace) -> int:
    """Bytes that torch's allocator held at once for `call`, its second time."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    profiler.export_chrome_trace(str(trace))
    events = [event["args"] for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    return max(event["Total Allocated"] for event in events) - (events[0]["Total Allocated"] - events[0]["Bytes"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_large_batch_needs_half_of_the_modules_memory_in_the_vit(dtype, tmp_path):
    sizes = {"image_size": 28, "vit_dim": 176, "vit_heads": 2, "vit_ffn_dim": 768, "vit_depth": 2, "qformer_dim": 96}
    config = dataclasses.replace(SeedConfig.preset("seed-2"), **sizes, qformer_depth=1, decoder_depth=1)
    tok = SeedTokenizer(config, dtype=dtype)
    pixels = torch.randn(256, 3, 28, 28, dtype=dtype)
    modules, plan = (
        extra_memory(lambda encoder=encoder: encoder.image_features(pixels), tmp_path / "trace.json")
        for encoder in (tok, tok.fast())
    )
    assert 0 < plan <= modules / 2


def on_gpu(test):
    reason = "" if torch.cuda.is_available() else "no CUDA device"
    return pytest.mark.gpu(pytest.mark.skipif(bool(reason), reason=reason or "has a GPU")(test))


@pytest.fixture(scope="module")
def plans():
    """(a plan that replays graphs, the same one without, pixels)."""
    tok = SeedTokenizer.from_pretrained("seed-tiny", device="cuda")
    pixels = torch.randn(200, 3, 64, 64, generator=torch.Generator().manual_seed(0)).cuda()
    return tok.fast(), tok.fast(graphs=False), pixels


@on_gpu
@pytest.mark.parametrize("count", [1, 3, 64, 65, 130])
def test_graphs_on_a_gpu_give_what_eager_launches_give(plans, count):
    plan, eager, pixels = plans
    for start in (0, count % 70):  # capture, then replay with other images
        batch = pixels[start : start + count]
        causal = plan.causal_embeddings(batch)
        with torch.no_grad():
            exact = SeedTokenizer.from_pretrained("seed-tiny", device="cuda").double().causal_embeddings(batch.double())
        assert error_ratio(causal, eager.causal_embeddings(batch), exact) <= 2
        assert torch.equal(plan.lookup(causal), eager.lookup(causal))
    assert torch.equal(plan.encode(pixels[:count]), eager.encode(pixels[:count]))


@on_gpu
def test_graphs_on_two_streams_and_threads_do_not_disturb_each_other(plans):
    plan, eager, pixels = plans
    expected = [eager.encode(pixels[start : start + 24]) for start in range(0, 168, 24)]
    torch.cuda.synchronize()
    found: dict[int, list[torch.Tensor]] = {}

    def work(name):
        with torch.cuda.stream(torch.cuda.Stream()), torch.inference_mode():
            for _ in range(3):
                found[name] = [
                    plan.lookup(plan.causal_embeddings(pixels[start : start + 24])) for start in range(0, 168, 24)
                ]
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in range(2):
        assert all(map(torch.equal, found[name], expected))


@on_gpu
def test_a_plan_with_graphs_becomes_part_of_a_callers_graph(plans):
    plan, eager, pixels = plans
    batch = pixels[:8].clone()
    codes = plan.lookup(plan.causal_embeddings(batch))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        codes = plan.lookup(plan.causal_embeddings(batch))
    batch.copy_(pixels[8:16])
    graph.replay()
    assert torch.equal(codes, eager.encode(pixels[8:16]))


@on_gpu
def test_memory_of_a_large_batch_with_graphs_is_at_most_half_of_the_modules(plans):
    """The width of ViT-g and four of its blocks: activations don't add up over blocks."""
    config = dataclasses.replace(SeedConfig.preset("seed-2"), vit_depth=4, qformer_depth=2, decoder_depth=1)
    tok = SeedTokenizer(config, device="cuda", dtype=torch.float16).eval()
    pixels = torch.randn(256, 3, 224, 224, device="cuda", dtype=torch.float16)
    peaks = []
    for encoder in (tok, tok.fast()):
        with torch.inference_mode():
            encoder.lookup(encoder.causal_embeddings(pixels[:1]))  # libraries and workspaces
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            encoder.lookup(encoder.causal_embeddings(pixels))
            torch.cuda.synchronize()
            peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] <= peaks[0] / 2
