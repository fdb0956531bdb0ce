"""`seed-fast tokenize`: images to codes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from seed_fast._outputs import STDOUT, output_file, output_folder
from seed_fast._terminal import ProgressBar, tell
from seed_fast._text import printable
from seed_fast.cli import _checks, _options
from seed_fast.cli._run import EXIT_SKIPPED, UsageError

if TYPE_CHECKING:
    import torch

    from seed_fast.data.pipeline import Job, TokenizeSummary
    from seed_fast.data.shards import Split
    from seed_fast.data.writers import Writer


@dataclass(frozen=True, kw_only=True)
class TokenizeOptions(_options.ResumableOptions):
    """Options of `seed-fast tokenize`."""

    inputs: Annotated[
        tuple[str, ...],
        typer.Argument(
            metavar="INPUTS...",
            help="Images, folders (walked to the end), globs ('photos/**/*.jpg'), tar shards ('train-{000..099}.tar').",
        ),
    ]
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The file to write (-: standard output), or with --format npz the folder. A link is followed.",
        ),
    ]
    format: Annotated[
        Literal["jsonl", "npz"],
        typer.Option(
            help='jsonl: lines {"path", "codes"}. npz: numbered parts holding arrays paths and codes (uint16).'
        ),
    ] = "jsonl"
    model: _options.Model = "seed-tiny"
    device: _options.Device = "auto"
    dtype: _options.Dtype = "float32"
    plan: _options.Plan = "fast"
    batch_size: _options.BatchSize = 32
    workers: _options.Workers = None
    resize: Annotated[
        Literal["bicubic", "bilinear", "bilinear_crop"] | None,
        typer.Option(help="How images are resized; codes depend on it. Default: what the model's config says."),
    ] = None
    random_weights: _options.RandomWeights = False
    as_json: _options.AsJson = False


@_options.command(stopped="what is done is kept, go on with --resume")
def tokenize(options: TokenizeOptions) -> int:
    """Turn images into codes.

    A bad image is skipped and named on stderr. Until the output is complete, it is called OUTPUT.partial; --resume
    continues it after an interruption, a crash or a kill.

    \b
    Examples:
      seed-fast tokenize photos/ -o codes.jsonl
      seed-fast tokenize 'train-{000..099}.tar' -o codes/ --format npz --model ./seed-2 --device cuda --resume
      torchrun --nproc-per-node 8 --no-python seed-fast tokenize data/ -o codes.jsonl --model ./seed-2
      seed-fast tokenize photos/ -o /tmp/codes.jsonl --model seed-2 --random-weights --dtype bfloat16 --json

    \b
    Exit codes:
      0    every image has its codes
      1    the run failed
      2    the command was wrong; nothing was done
      3    done, but some images or inputs were bad
      130  interrupted (143: terminated); resume with --resume
    """
    options = replace(options, output=_output(options))
    split = _checks.shard_option(options.shard)
    _checks.check_resumable(options.resume, options.overwrite, _writer(options, split).leftovers())
    device = _checks.device_option(options.device)
    with _checks.together_with_other_ranks():
        return _tokenize(options, split, device)


def _tokenize(options: TokenizeOptions, split: Split, device: torch.device) -> int:
    import torch

    from seed_fast.data import pipeline
    from seed_fast.data.image_processor import ImageProcessor
    from seed_fast.model.weight_hashes import fingerprint

    # The plan rounds the weights of its products itself, and keeps the others in float32.
    fast = options.plan == "fast"
    dtype = "float32" if fast else options.dtype
    plain = _checks.tokenizer_option(options.model, device, dtype, random_weights=options.random_weights)
    weights = fingerprint(plain)
    tok = plain.fast(dtype=getattr(torch, options.dtype)) if fast else plain

    # The run itself, with a progress bar.
    writer = _writer(options, split, tok.config.codebook_size)
    workers = _checks.workers_option(options.workers)
    job = pipeline.Job(options.inputs, options.batch_size, workers, split, options.resume, options.overwrite)
    processor = ImageProcessor(tok.config.image_size, options.resize or tok.config.resize)
    model = options.model + (" (random weights)" if options.random_weights else "")
    progress = ProgressBar()
    try:
        with _checks.same_run():
            summary = pipeline.tokenize(tok, job, processor, writer, model, progress, weights)
    except pipeline.NoImages as error:
        raise UsageError(str(error)) from None
    finally:
        progress.close()

    # Report what was done: on stderr if standard output holds the codes.
    exit_code = EXIT_SKIPPED if summary.left_out else 0
    # In half precision the codes depend on how products round; the name makes the same choice again.
    products = getattr(tok, "products", "") if options.dtype != "float32" and device.type == "cpu" else ""
    to_stdout = writer.output == STDOUT
    if options.as_json:
        about = {"output": str(writer.output), "model": options.model, "random_weights": options.random_weights}
        about |= {"device": str(device), "dtype": options.dtype, "resize": processor.resize, "shard": str(split)}
        about |= {"batch_size": job.batch_size, "workers": workers, "products": getattr(tok, "products", None)}
        closing = json.dumps(about | summary.to_dict() | {"exit_code": exit_code})
        tell(closing) if to_stdout else print(closing, flush=True)
    elif to_stdout:
        tell(closing_table(summary, job, str(device), products), lines=True)
    else:
        table = closing_table(summary, job, str(device), products)
        print(table, printable(str(writer.output)), sep="\n", flush=True)
    return exit_code


def _output(options: TokenizeOptions) -> Path:
    """Return the file or folder to write, with links followed."""
    with _checks.usage():
        if options.format == "npz":
            output = output_folder(options.output, "must be a folder with --format npz")
        else:
            output = output_file(options.output, "must be a file name (--format npz writes a folder)")
    if STDOUT in (output, options.output):
        if options.format == "npz":
            raise UsageError("--format npz writes a folder, which standard output (-) can't be")
        if options.resume or options.overwrite:
            raise UsageError("--resume and --overwrite need a file, and the output is standard output (-)")
    return output


def _writer(options: TokenizeOptions, split: Split, codebook_size: int = 0) -> Writer:
    from seed_fast.data.writers import JsonlWriter, NpzWriter, StdoutWriter

    if options.output == STDOUT:
        return StdoutWriter()
    if options.format == "npz":
        return NpzWriter(options.output, split, codebook_size=codebook_size)
    return JsonlWriter(options.output, split)


def closing_table(summary: TokenizeSummary, job: Job, device: str, products: str = "") -> str:
    """Return the closing table: each stage, where it ran, its seconds, and its share of the seconds of all stages.

    Args:
        summary: counts and times of the run.
        job: inputs and options of the run.
        device: the device of the model.
        products: library of the matrix products in half precision, on which the codes depend; "" in float32.
    """
    where = {"main": "main process", "device": device, "workers": f"{job.workers} worker{'s' * (job.workers != 1)}"}
    rows = [f"{'stage':<14} {'where':<14} {'seconds':>9} {'ms/image':>9} {'share':>7}"]
    for stage in summary.stages:
        each = f"{1000 * stage.seconds / summary.written:9.2f}" if summary.written else f"{'-':>9}"
        rows.append(f"{stage.name:<14} {where[stage.where]:<14} {stage.seconds:9.2f} {each} {100 * stage.share:6.1f}%")
    busy = sum(stage.seconds for stage in summary.stages)
    rows += [
        f"A share is of the {busy:.2f} s that all stages took together.",
        _wall_time(summary, job, device) + (" Workers ran beside it; their seconds are summed." if job.workers else ""),
        f"{summary.written} images encoded, {summary.images_per_second:.1f} images/s"
        + (f"; {summary.resumed} were there before" if summary.resumed else "")
        + (f"; {summary.skipped} skipped" if summary.skipped else "")
        + (f"; {summary.bad_inputs} inputs could not be listed" if summary.bad_inputs else ""),
    ]
    if products:
        rows.append(
            f"Matrix products in half precision: {products}; SEED_FAST_PRODUCTS={products} rounds the same way."
        )
    return "\n".join(rows)


def _wall_time(summary: TokenizeSummary, job: Job, device: str) -> str:
    own = sum(stage.seconds for stage in summary.stages if stage.where != "workers")
    other = summary.seconds - own - summary.waiting_seconds
    if device != "cpu" and other < 0:  # the main process went on while the device computed
        computing = sum(stage.seconds for stage in summary.stages if stage.where == "device")
        return (
            f"Wall time {summary.seconds:.2f} s; {device} computed for {computing:.2f} s of it, beside the main process"
            + (f", which waited {summary.waiting_seconds:.2f} s for workers." if job.workers else ".")
        )
    return (
        f"Wall time {summary.seconds:.2f} s = {own:.2f} s stages of the main process and {device}"
        + (f" + {summary.waiting_seconds:.2f} s waiting for workers" if job.workers else "")
        + f" + {max(0.0, other):.2f} s other."
    )
