"""Run the stages of encoding, and measure their times, launches and idle times; write a trace."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from seed_fast._files import write_beside
from seed_fast.data.image_processor import ImageProcessor, load_image
from seed_fast.model.fast import FastTokenizer
from seed_fast.model.tokenizer import SeedTokenizer
from seed_fast.profile.cost import QFORMER_PARTS
from seed_fast.profiling import StageTimer

STAGES = {"decode+resize": "main", "normalise": "device", "ViT": "device", "Q-Former": "device",
          "nearest code": "device"}  # fmt: skip
PARTS = {f"Q-Former/{name}": "device" for name in QFORMER_PARTS}
FEWEST_ROUNDS, MOST_ROUNDS, SECONDS = 3, 50, 8.0
LONGEST_PASS = 0.4  # share of the measuring time that a pass may take: one pass warms up, one counts
GPU_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
Measure = Callable[[str], AbstractContextManager[None]]


@dataclass
class Samples:
    """Measurements by stage, and by part ("Q-Former/NAME"); every list has one entry per round."""

    wall: list[float] = field(default_factory=list)  # s, whole pass
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    idle: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # s, waiting
    launches: dict[str, int] = field(default_factory=dict)
    warming_up: bool = False  # True: only the first pass fitted into the time, and these are its times


class Encoding:
    """One batch on its way from image files to codes.

    Args:
        tok: a `SeedTokenizer`, or the plan that its `fast` made.
        files: the bytes of one image file per image of the batch.
        blocks: number of ViT blocks to run; their time is scaled up to all blocks, which are alike. Default: all.
    """

    def __init__(self, tok: SeedTokenizer | FastTokenizer, files: list[bytes], blocks: int | None = None) -> None:
        self.tok, self.files = tok, files
        self.depth = tok.config.vit_depth
        self.blocks = min(blocks or self.depth, self.depth)
        self.processor = ImageProcessor(tok.config.image_size, tok.config.resize)

    def run(self, measure: Measure) -> torch.Tensor:
        """Return the codes [B, N]; each stage runs inside `measure(its name)`. Keeps the features for `run_parts`."""
        with measure("decode+resize"):
            pixels = np.stack([self.processor.resize_uint8(load_image(file)) for file in self.files])
        with measure("normalise"):
            normalised = self.processor.normalize(torch.from_numpy(pixels).to(self.tok.device))
        with _first_blocks(self.tok.vit, self.blocks), measure("ViT"):
            self.features = self.tok.image_features(normalised)
        with measure("Q-Former"):
            causal = self.tok.query_embeddings(self.features)
        with measure("nearest code"):
            return self.tok.lookup(causal)

    def run_parts(self, measure: Measure) -> None:
        """Run the Q-Former once more, each of its parts inside `measure("Q-Former/NAME")`.

        This is a run of its own, because measuring dozens of parts would slow the stage itself. It does not call
        `query_embeddings`, which may replay a CUDA graph, and a graph has no parts.
        """
        with _parts_inside(self.tok, measure):
            self.tok.qformer(self.features)


@contextmanager
def _parts_inside(tok: Any, measure: Measure) -> Iterator[None]:
    """Wrap the parts of the tokenizer's Q-Former in `measure` while the context lasts."""

    def inside(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            with measure(f"Q-Former/{name}"):
                return call(*arguments, **named)

        return run

    with ExitStack() as undo:
        if isinstance(tok, FastTokenizer):
            lists: tuple[list[Any], ...] = (tok.qformer.selves, tok.qformer.crosses, tok.qformer.ffns)
            for name, calls in zip(QFORMER_PARTS, lists, strict=True):
                undo.callback(calls.__setitem__, slice(None), list(calls))
                calls[:] = [call and inside(name, call) for call in calls]
            if not tok.qformer.absorbed:
                undo.callback(setattr, tok.qformer, "key_value", tok.qformer.key_value)
                setattr(tok.qformer, "key_value", inside("cross-attention", tok.qformer.key_value))  # noqa: B010
        else:
            for layer in tok.qformer.layers:
                for name, module in zip(
                    QFORMER_PARTS, (layer.self_attention, layer.cross_attention, layer.ffn), strict=True
                ):
                    if module is not None:
                        undo.callback(delattr, module, "forward")  # uncovers the forward of the class
                        module.forward = inside(name, module.forward)
        yield


@contextmanager
def _first_blocks(vit: Any, count: int) -> Iterator[None]:
    """Leave the ViT its first `count` blocks while the context lasts."""
    blocks = vit.blocks
    vit.blocks = blocks[:count]
    try:
        yield
    finally:
        vit.blocks = blocks


def affordable(encoding: Encoding, seconds: float) -> tuple[Encoding, float]:
    """Reduce an encoding to what can be measured within some seconds.

    Args:
        encoding: the encoding that was asked for.
        seconds: time for all passes together, s.

    Returns:
        The encoding itself, or one with fewer images, or, where one image takes too long, one with fewer ViT blocks;
        and the predicted time of a pass of the whole batch in s. On a GPU the encoding stays as it is, with time 0.
    """
    if encoding.tok.device.type != "cpu":
        return encoding, 0.0
    count, one = len(encoding.files), Encoding(encoding.tok, encoding.files[:1], blocks=1)
    samples = Samples()
    with torch.inference_mode():
        for _ in range(3):  # the first pass may read weights from the disk, and any pass may be disturbed
            start = time.perf_counter()
            _round(one, samples)
            if time.perf_counter() - start > seconds / 15:
                break
    predicted = min(samples.wall)  # s of one image; in a batch it takes less
    fits = seconds * LONGEST_PASS / predicted
    if count <= fits:
        return encoding, predicted * count
    if fits >= 1:
        return Encoding(encoding.tok, encoding.files[: 1 << int(fits).bit_length() - 1]), predicted * count
    return Encoding(encoding.tok, encoding.files[:1], max(1, int(fits * one.depth))), predicted * count


def measure(encoding: Encoding, rounds: int | None = None, seconds: float = float("inf")) -> Samples:
    """Time whole batches, one after the other.

    Args:
        encoding: the batch.
        rounds: number of rounds; default: as many as fit into some seconds, from 3 to 50. A first pass, which warms up
            and counts calls, is not among them.
        seconds: rounds that would not end within this time are left out. The first pass is always made; if no round
            fits after it, its times are the result.
    """
    # The first pass warms up and, on a CPU, counts the calls of operations.
    device, samples, first = encoding.tok.device, Samples(), Samples()
    start = time.perf_counter()
    end = start + seconds
    if device.type == "cuda":
        with torch.inference_mode():
            _round(encoding, first)
    else:
        # Not in inference mode, which would also count operations that consist of others.
        with torch.no_grad(), _counting() as (counted, first.launches):
            _round(encoding, first, counted)
        if encoding.blocks < encoding.depth:
            del first.launches["ViT"]
    # Then the rounds that are timed.
    taken = time.perf_counter() - start
    soft_end = start + taken + SECONDS
    with torch.inference_mode():
        for turn in range(rounds or MOST_ROUNDS):
            now = time.perf_counter()
            if now + taken > end or (rounds is None and turn >= FEWEST_ROUNDS and now > soft_end):
                break
            _round(encoding, samples)
    if not samples.wall:
        samples = first
        samples.warming_up = True
    samples.launches = first.launches
    if device.type == "cuda":
        _add_gpu_work(encoding, samples)
    return samples


def _round(encoding: Encoding, samples: Samples, also: Measure | None = None) -> None:
    """Make one pass and append its times to `samples`; every stage also runs inside `also(its name)`."""
    # Each stage has a timer and, on a CPU, the CPU time of this process, from which its idle time follows.
    device, also = encoding.tok.device, also or _nothing
    timer = StageTimer(STAGES | PARTS, device)
    cpu_seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        with also(name), _nvtx(name, device), timer.measure(name):
            begin = time.process_time()
            yield
            cpu_seconds[name] += time.process_time() - begin

    # The whole is timed from files to codes on the host; parts run afterwards, outside of it.
    start = time.perf_counter()
    encoding.run(timed).cpu()
    wall = time.perf_counter() - start
    encoding.run_parts(timed)
    timer.resolve()
    for name, where, seconds, _ in timer.stages():
        if not seconds:  # a part that a small model does not have
            continue
        if name == "ViT" and encoding.blocks < encoding.depth:
            wall += seconds * (encoding.depth / encoding.blocks - 1)
            cpu_seconds[name] *= encoding.depth / encoding.blocks
            seconds *= encoding.depth / encoding.blocks
        samples.seconds[name].append(seconds)
        if device.type == "cpu":
            threads = torch.get_num_threads() if where == "device" else 1
            samples.idle[name].append(max(0.0, seconds - cpu_seconds[name] / threads))
    samples.wall.append(wall)


@contextmanager
def _nothing(name: str) -> Iterator[None]:
    yield


def _nvtx(name: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context that marks a range for Nsight Systems; it does nothing without a GPU."""
    return torch.cuda.nvtx.range(name) if device.type == "cuda" else nullcontext()


def count_calls(encoding: Encoding) -> dict[str, int]:
    """Count the calls of torch operations that run a kernel of the CPU (not views); return {stage or part: calls}."""
    with torch.no_grad(), _counting() as (counted, counts):
        encoding.run(counted)
        encoding.run_parts(counted)
    return dict(counts)


@contextmanager
def _counting() -> Iterator[tuple[Measure, dict[str, int]]]:
    """Yield a `Measure` that counts calls, and the dict {name: calls} that it counts into."""
    counts = Counter[str]()

    class CountCalls(TorchDispatchMode):
        stage = ""

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            results = function._schema.returns
            view = bool(results) and all(r.alias_info is not None and not r.alias_info.is_write for r in results)
            counts[self.stage] += not view
            return function(*args, **(kwargs or {}))

    mode = CountCalls()

    @contextmanager
    def counted(name: str) -> Iterator[None]:
        mode.stage = name
        with mode:
            yield

    yield counted, counts


def write_trace(encoding: Encoding, path: Path) -> None:
    """Write a Chrome trace of one batch, stages and parts as named ranges.

    Raises:
        OSError: the file cannot be written.
    """
    from torch.profiler import ProfilerActivity, profile, record_function

    device = encoding.tok.device
    on_gpu = device.type == "cuda"

    @contextmanager
    def named(name: str) -> Iterator[None]:
        with _nvtx(name, device), record_function(name):
            yield

    path.parent.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
    with torch.inference_mode(), profile(activities=activities) as profiler:
        encoding.run(named).cpu()
        encoding.run_parts(named)
        if on_gpu:
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder, path.name)  # the suffix stays: .gz asks for compression
        profiler.export_chrome_trace(str(exported))
        write_beside(path, exported.read_bytes())


def _add_gpu_work(encoding: Encoding, samples: Samples) -> None:
    """Add launches and idle times of every stage to `samples`, from a trace of one more batch."""
    with tempfile.TemporaryDirectory() as folder:
        write_trace(encoding, Path(folder) / "trace.json")
        work = gpu_work(json.loads((Path(folder) / "trace.json").read_text())["traceEvents"])
    for name, (launches, busy) in work.items():
        samples.launches[name] = launches
        if name in samples.seconds:
            samples.idle[name] = [max(0.0, seconds - busy) for seconds in samples.seconds[name]]


def gpu_work(events: list[dict[str, Any]]) -> dict[str, tuple[int, float]]:
    """Count kernels and busy time of the GPU from the events of a Chrome trace.

    Work on the GPU belongs to the stage during whose range, on the same thread, it was launched.

    Returns:
        {stage or part: (number of kernels, seconds in which the GPU was busy)}.
    """
    # The calls that launched work, and in which stage each was made.
    known = {name for name, where in (STAGES | PARTS).items() if where == "device"}
    ranges = [e for e in events if e.get("cat") == "user_annotation" and e["name"] in known]
    stage_of = {}
    for call in events:
        if call.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in call.get("args", {}):
            for r in ranges:
                if r["tid"] == call["tid"] and r["ts"] <= call["ts"] <= r["ts"] + r["dur"]:
                    stage_of[call["args"]["correlation"]] = r["name"]
    # The work, assigned by its launch; kernels may overlap, so their times are united, not added.
    kernels: Counter[str] = Counter()
    spans: dict[str, list[tuple[float, float]]] = {r["name"]: [] for r in ranges}
    for work in events:
        name = stage_of.get(work.get("args", {}).get("correlation")) if work.get("cat") in GPU_WORK else None
        if name:
            kernels[name] += work["cat"] == "kernel"
            spans[name].append((work["ts"], work["ts"] + work["dur"]))
    return {name: (kernels[name], _covered(spans[name]) / 1e6) for name in spans}


def _covered(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
