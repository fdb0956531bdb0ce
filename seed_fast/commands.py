"""What the commands of `seed-fast` do: checking options, loading, exit codes. The command line itself is in `cli`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from seed_fast import report
from seed_fast._outputs import STDOUT, output_file, output_folder
from seed_fast._run import (  # noqa: F401 - other commands take them from here
    EXIT_FAILED,
    EXIT_SKIPPED,
    EXIT_USAGE,
    Stopped,
    UsageError,
    run,
    waiting_for_others,
)
from seed_fast._run import complain as _complain
from seed_fast.data.image_processor import ImageProcessor, load_image, read_bytes
from seed_fast.data.shards import WHOLE, Split
from seed_fast.data.writers import JsonlWriter, NpzWriter, StdoutWriter, Writer
from seed_fast.report import Progress, printable, render

if TYPE_CHECKING:
    import torch

    from seed_fast.model.encoder import ImageEncoder
    from seed_fast.model.tokenizer import SeedTokenizer

DTYPES = ("float32", "bfloat16", "float16")
MOST_WORKERS = 8


@dataclass(frozen=True)
class TokenizeOptions:
    """The options of `seed-fast tokenize`, as given."""

    inputs: tuple[str, ...]
    output: Path
    format: str = "jsonl"
    model: str = "seed-tiny"
    device: str = "auto"
    dtype: str = "float32"
    plan: str = "fast"
    batch_size: int = 32
    workers: int | None = None
    shard: str | None = None
    resume: bool = False
    overwrite: bool = False
    resize: str | None = None
    random_weights: bool = False
    as_json: bool = False


@dataclass(frozen=True)
class ProfileOptions:
    """The options of `seed-fast profile`, as given."""

    model: str = "seed-tiny"
    random_weights: bool = False
    batch_size: int = 8
    device: str = "auto"
    dtype: str = "float32"
    plan: str = "fast"
    image: Path | None = None
    rounds: int | None = None
    seconds: float = 30.0
    output: Path | None = None
    trace: Path | None = None
    as_json: bool = False


@dataclass(frozen=True)
class RetrievalOptions:
    """The options of `seed-fast eval retrieval`, as given."""

    data: str
    model: str = "seed-tiny"
    split: str = "test"
    images: Path | None = None
    codes: bool = True
    device: str = "auto"
    dtype: str = "float32"
    batch_size: int = 64
    workers: int | None = None
    as_json: bool = False


def tokenize(options: TokenizeOptions) -> int:
    """Run `seed-fast tokenize`. Returns the exit code."""
    return run(lambda: _tokenize(options), stopped="what is done is kept, go on with --resume")


def _tokenize(options: TokenizeOptions) -> int:
    options = replace(options, output=_output(options))
    split = _split(options.shard)
    _check_output(options, split)
    device = _device(options.device)
    with _together_with_other_ranks():
        return _tokenize_part(options, split, device)


def _tokenize_part(options: TokenizeOptions, split: Split, device: torch.device) -> int:
    from seed_fast import pipeline

    tok, weights = _encoder(options, device)
    writer = _writer(options, split, tok.config.codebook_size)

    workers = _spare_cores() if options.workers is None else options.workers
    job = pipeline.Job(options.inputs, options.batch_size, workers, split, options.resume, options.overwrite)
    processor = ImageProcessor(tok.config.image_size, options.resize or tok.config.resize)
    model = options.model + (" (random weights)" if options.random_weights else "")
    progress = Progress()
    try:
        summary = pipeline.tokenize(tok, job, processor, writer, model, progress, weights)
    except pipeline.NoImages as error:
        raise UsageError(str(error)) from None
    except _out_of_memory() as error:
        raise OSError(f"the device has no memory for a batch of {options.batch_size}: lower --batch-size") from error
    finally:
        progress.close()
    # In half precision the codes depend on how products round; the name makes the same choice again.
    products = getattr(tok, "products", "") if options.dtype != "float32" and device.type == "cpu" else ""
    if options.as_json:
        about = {"output": str(writer.output), "model": options.model, "random_weights": options.random_weights}
        about |= {"device": str(device), "dtype": options.dtype, "resize": processor.resize, "shard": str(split)}
        about |= {"batch_size": job.batch_size, "workers": workers, "products": getattr(tok, "products", None)}
        closing = json.dumps(about | summary.to_dict())
        report.tell(closing) if writer.output == STDOUT else print(closing, flush=True)
    elif writer.output == STDOUT:
        report.tell(render(summary, job, str(device), products), lines=True)
    else:
        print(render(summary, job, str(device), products), printable(str(writer.output)), sep="\n", flush=True)
    return summary.exit_code


def _meant(option: str, path: Path, *, folder: bool = False) -> Path:
    """What the path of an option stands for, by `output_file` or `output_folder`."""
    try:
        return (
            output_folder(path, f"{option} must be a folder")
            if folder
            else output_file(path, f"{option} must be a file name")
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _split(shard: str | None) -> Split:
    try:
        of_torchrun = Split.of_environment()
        asked = None if shard is None else Split.parse(shard)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if of_torchrun and asked:
        raise UsageError(f"--shard {asked} can't be used under torchrun, which has made this rank {of_torchrun}")
    return of_torchrun or asked or WHOLE


def _output(options: TokenizeOptions) -> Path:
    """Where to write, with links followed."""
    try:
        if options.format == "npz":
            output = output_folder(options.output, "must be a folder with --format npz")
        else:
            output = output_file(options.output, "must be a file name (--format npz writes a folder)")
    except ValueError as error:
        raise UsageError(str(error)) from None
    if STDOUT in (output, options.output):
        if options.format == "npz":
            raise UsageError("--format npz writes a folder, which standard output (-) can't be")
        if options.resume or options.overwrite:
            raise UsageError("--resume and --overwrite need a file, and the output is standard output (-)")
    return output


def _writer(options: TokenizeOptions, split: Split, codebook_size: int = 0) -> Writer:
    if options.output == STDOUT:
        return StdoutWriter()
    if options.format == "npz":
        return NpzWriter(options.output, split, codebook_size=codebook_size)
    return JsonlWriter(options.output, split)


def _check_output(options: TokenizeOptions, split: Split) -> None:
    """Refuse before anything is loaded, let alone written."""
    if options.resume and options.overwrite:
        raise UsageError("--resume goes on with what is there, --overwrite drops it: give one of them")
    leftovers = _writer(options, split).leftovers()
    if leftovers and not (options.resume or options.overwrite):
        what = "an unfinished run" if leftovers[0].suffix == ".partial" else "an earlier run"
        raise UsageError(f"{leftovers[0]}: left by {what}; --resume goes on with it, --overwrite drops it")


def _device(name: str) -> torch.device:
    import torch

    local_rank = os.environ.get("LOCAL_RANK", "0")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda" or not torch.cuda.is_available():
        raise UsageError(f"--device {name}: PyTorch {torch.__version__} sees no such device here")
    index = int(local_rank) if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise UsageError(f"--device cuda:{index}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _load_model(options: TokenizeOptions | ProfileOptions, device: torch.device) -> SeedTokenizer:
    import torch

    from seed_fast import SeedConfig, SeedTokenizer
    from seed_fast.model.config import PRESETS

    name, dtype = options.model, getattr(torch, options.dtype)
    if options.random_weights:
        if name not in PRESETS:
            raise UsageError(f"--random-weights needs a preset as --model ({', '.join(PRESETS)}), got {name!r}")
        torch.manual_seed(0)
        _complain(f"{name}: random weights; the codes mean nothing")
        if isinstance(options, ProfileOptions):
            from seed_fast.profile.run import tokenizer_for_timing

            return tokenizer_for_timing(SeedConfig.preset(name), device, dtype)
        return SeedTokenizer(SeedConfig.preset(name), device=device, dtype=dtype).eval()
    if name in PRESETS and name != "seed-tiny" and not Path(name).exists():
        raise UsageError(
            f"--model {name}: the weights of this preset don't come with the package: give a folder or a hub id "
            "(`seed-fast convert --help` makes a folder), or --random-weights to measure speed"
        )
    try:
        tok = SeedTokenizer.from_pretrained(name, device=device, dtype=dtype)
    except ValueError as error:
        raise OSError(str(error)) from error
    if not tok.trained:
        _complain(f"{name}: these weights are untrained (the seeded initial ones); the codes mean nothing yet")
    return tok


def _encoder(options: TokenizeOptions, device: torch.device) -> tuple[ImageEncoder, str]:
    """(what encodes, the fingerprint of its weights)."""
    import torch

    from seed_fast.pipeline import fingerprint

    if options.plan == "plain":
        tok = _load_model(options, device)
        return tok, fingerprint(tok)
    # The plan rounds the weights of its products itself, and keeps the others in float32.
    tok = _load_model(replace(options, dtype="float32"), device)
    return tok.fast(dtype=getattr(torch, options.dtype)), fingerprint(tok)


def _out_of_memory() -> type[BaseException]:
    import torch

    return torch.cuda.OutOfMemoryError


def _spare_cores() -> int:
    """Processes for decoding: one core stays with the model, and torchrun's ranks on this machine share the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


@contextmanager
def _together_with_other_ranks() -> Iterator[None]:
    """Under torchrun, leave when all ranks are done: it ends every rank as soon as one exits with another code than 0,
    and bad images on one must not stop the others. Joining comes first, so that a wrong set-up fails at once.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    import torch.distributed as ranks

    try:
        with waiting_for_others():
            ranks.init_process_group("gloo", timeout=timedelta(minutes=5))
    except RuntimeError as error:
        raise OSError(f"torchrun: the ranks did not find each other: {error}") from error
    yield
    with waiting_for_others():
        ranks.monitored_barrier(timeout=timedelta(days=30))
        ranks.destroy_process_group()


def profile(options: ProfileOptions) -> int:
    """Run `seed-fast profile`. Returns the exit code."""
    return run(lambda: _profile(options))


def _profile(options: ProfileOptions) -> int:
    if options.output is not None:
        options = replace(options, output=_meant("--output", options.output, folder=True))
    if options.trace is not None:
        options = replace(options, trace=_meant("--trace", options.trace))
    device = _device(options.device)
    image = None if options.image is None else read_bytes(options.image)
    if image is not None:
        load_image(image, str(options.image))  # before minutes of loading
    import torch

    from seed_fast.profile import run
    from seed_fast.profile.text import render as render_profile

    fast = options.plan == "fast"
    # The plan rounds the weights of its products itself, and keeps the others in float32.
    tok = _load_model(replace(options, dtype="float32") if fast else options, device)
    try:
        found = run.profile(
            tok.fast(dtype=getattr(torch, options.dtype)) if fast else tok,
            model=options.model + (" (random weights)" if options.random_weights else ""),
            batch_size=options.batch_size,
            image=image,
            rounds=options.rounds,
            trace=options.trace,
            seconds=options.seconds,
            say=_complain,
        )
    except _out_of_memory() as error:
        raise OSError(f"the device has no memory for a batch of {options.batch_size}: lower --batch-size") from error
    if options.output is not None:
        _, missing = run.write(found, options.output)
        if missing:
            _complain(missing)
    print(json.dumps(found) if options.as_json else render_profile(found), flush=True)
    return 0


def eval_retrieval(options: RetrievalOptions) -> int:
    """Run `seed-fast eval retrieval`. Returns the exit code."""
    return run(lambda: _eval_retrieval(options))


def _eval_retrieval(options: RetrievalOptions) -> int:
    if options.dtype not in DTYPES:
        raise UsageError(f"--dtype must be one of {', '.join(DTYPES)}, got {options.dtype!r}")
    device = _device(options.device)
    import torch

    from seed_fast import SeedTokenizer
    from seed_fast.data.pairs import open_pairs
    from seed_fast.eval.retrieval import retrieval, table
    from seed_fast.train.folder import contrast_folder, load_contrast

    try:
        folder = contrast_folder(options.model)
    except ValueError as error:
        raise UsageError(str(error)) from None
    tok = SeedTokenizer.from_pretrained(folder, device=device, dtype=getattr(torch, options.dtype))
    model, captions = load_contrast(folder, tok)
    config = tok.config
    try:
        pairs = open_pairs(
            options.data,
            image_size=config.image_size,
            resize=config.resize,
            batch_size=options.batch_size,
            split=options.split,
            workers=_spare_cores() if options.workers is None else options.workers,
            shuffle=False,
            drop_last=False,
            all_captions=True,
            image_root=options.images,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    progress = Progress()
    try:
        result = retrieval(model, captions, pairs, codes=options.codes, advance=progress.advance)
    except _out_of_memory() as error:
        raise OSError(f"the device has no memory for a batch of {options.batch_size}: lower --batch-size") from error
    finally:
        progress.close()
        pairs.close()
    about = {"data": options.data, "split": options.split, "model": options.model, "device": str(device)}
    about |= {"dtype": options.dtype, "skipped": pairs.skipped}
    print(json.dumps(about | result.to_dict()) if options.as_json else table(result), flush=True)
    if pairs.skipped:
        _complain(f"{pairs.skipped} pictures or captions were bad and are left out")
    return EXIT_SKIPPED if pairs.skipped else 0


def convert(paths: list[str], preset: str | None, dtype: str | None, to_official: bool = False) -> int:
    """Run `seed-fast convert`. Returns the exit code."""
    return run(lambda: _convert(paths, preset, dtype, to_official), memory="it takes about twice the largest tensor")


def _convert(paths: list[str], preset: str | None, dtype: str | None, to_official: bool) -> int:
    if len(paths) < 2:
        raise UsageError("convert: expected SOURCE... DEST, got one path")
    *sources, destination = paths
    if to_official:
        if len(sources) != 1 or preset or dtype:
            raise UsageError("convert: --to-official takes SOURCE DEST, and neither --preset nor --dtype")
        from seed_fast.convert.export import export_official

        print(printable(str(export_official(sources[0], destination))))
        return 0
    from tqdm import tqdm

    from seed_fast.convert import convert as convert_checkpoint

    with tqdm(unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        source = sources if len(sources) > 1 else sources[0]
        folder = convert_checkpoint(source, destination, preset=preset, dtype=dtype, progress=progress)
    print(printable(str(folder)))
    return 0
