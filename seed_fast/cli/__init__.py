"""The `seed-fast` command. Nothing heavy is imported before a command needs it, so `--help` answers at once."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

import seed_fast
from seed_fast._terminal import open_standard_streams
from seed_fast.cli import tokenize
from seed_fast.data.tokens_cli import app as tokens_app
from seed_fast.eval.cli import app as eval_app
from seed_fast.generate import cli as generate_cli
from seed_fast.train.cli import app as train_app
from seed_fast.train.lm_cli import lm as train_lm

app = typer.Typer(
    name="seed-fast",
    help="The SEED image tokenizer: an image becomes 32 causally ordered codes, and back.",
    epilog="Start with: seed-fast tokenize photos/ --output codes.jsonl",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(tokenize.tokenize)
train_app.command()(train_lm)
app.add_typer(train_app, name="train")
app.add_typer(eval_app, name="eval")
app.add_typer(tokens_app, name="tokens")
app.command()(generate_cli.caption)
app.command()(generate_cli.draw)


class Dtype(str, Enum):
    """In what the model computes."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Plan(str, Enum):
    """Which forward of the model."""

    fast = "fast"
    plain = "plain"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"seed-fast {seed_fast.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def convert(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE... DEST",
            help="A folder, a hub id, or official files (seed_quantizer.pt eva_vit_g.pth), then the folder to write.",
        ),
    ],
    preset: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="seed-1, seed-2 or seed-2-rqf. Default: what the tensors show."),
    ] = None,
    dtype: Annotated[
        Optional[Dtype],  # noqa: UP045
        typer.Option(help="Type to store. Default: each tensor as it is."),
    ] = None,
    to_official: Annotated[
        bool,
        typer.Option("--to-official", help="The other way: write seed_quantizer.pt, eva_vit_g.pth and stage1.pth."),
    ] = False,
) -> None:
    """Convert an official checkpoint to a folder that loads anywhere; or a folder of ours to official files.

    \b
    Examples:
      seed-fast convert seed_quantizer.pt eva_vit_g.pth ./seed-2
      seed-fast tokenize photos/ -o codes.jsonl --model ./seed-2
      seed-fast convert --to-official runs/stage2 ./official
    """
    from seed_fast import commands

    raise typer.Exit(commands.convert(paths, preset, dtype.value if dtype else None, to_official))


@app.command()
def profile(
    model: Annotated[
        str, typer.Option(help="seed-tiny, a folder, a hub id, or a preset (seed-2, ...) with --random-weights.")
    ] = "seed-tiny",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Make the preset's weights up: times don't depend on their values.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch. Try 1 for latency, 64 for throughput.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Type of the matrix products.")] = Dtype.float32,
    plan: Annotated[Plan, typer.Option(help="fast: tok.fast(), the inference plan. plain: the modules.")] = Plan.fast,
    image: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="An image of yours, to decode and resize. Default: a generated JPEG of 640 x 480 px."),
    ] = None,
    rounds: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1,
            help="Batches that are timed, as far as --seconds allow. Default: what fits into 8 seconds, from 3 to 50.",
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            min=1,
            help="How long to measure. Where a batch takes too long for it, less is measured, and the result says so.",
        ),
    ] = 30.0,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", metavar="FOLDER", help="Also write profile.json, profile.txt and profile.png."),
    ] = None,
    trace: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="Also write a Chrome trace of one batch, for https://ui.perfetto.dev."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print profile.json instead of the table.")] = False,
) -> None:
    """Show where the time of encoding goes, how far each stage is from what the machine can do, and what would help.

    For each stage, how to read its row:

    \b
      share      of the time of the whole. Start with the largest.
      GEMM peak  rate of its operations, as a share of the fastest matrix product that
                 this machine ran just now. Near 100%: only fewer operations make it faster.
      copy peak  bytes that it has to move per second, as a share of copy bandwidth.
      launches   kernels on a GPU. Many in a short stage: launching them is the work.
      idle       time in which the device, or the CPU's cores, did nothing.
      if free    how many times as fast the whole would be if this stage took no time:
                 by Amdahl's law, the most that any work on it can bring.
      at roof    the same, if it ran at its ceiling: the most that is possible.

    \b
    Examples:
      seed-fast profile
      seed-fast profile --model seed-2 --random-weights --device cuda --dtype float16 --batch-size 64 -o profile/
      seed-fast profile --plan plain --trace trace.json

    On a GPU the stages are NVTX ranges too, for Nsight Systems. docs/profile.md says what exactly is counted.
    """
    from seed_fast import commands

    options = commands.ProfileOptions(
        model=model,
        random_weights=random_weights,
        batch_size=batch_size,
        device=device,
        dtype=dtype.value,
        plan=plan.value,
        image=image,
        rounds=rounds,
        seconds=seconds,
        output=output,
        trace=trace,
        as_json=as_json,
    )
    raise typer.Exit(commands.profile(options))


@app.command()
def bench(
    what: Annotated[
        str, typer.Argument(help="ops, or one of them; e2e, or one of its parts: encode, qformer; train_tokenizer.")
    ] = "ops",
    quick: Annotated[bool, typer.Option("--quick", help="Small cases, in seconds; the numbers mean little.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Also the cases that take minutes each on a CPU.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="The file to write. Default: benchmarks/results/MACHINE[-e2e].json."),
    ] = None,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="CPU threads for every provider. Default: 2, which the bars speak of."),
    ] = None,
    compare: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="An older results file: exit 1 where seed_fast became slower than its peers say."),
    ] = None,
    threshold: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0, max=0.99, help="Share of a ratio that may be lost before --compare fails."),
    ] = None,
    results: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Judge this results file instead of measuring."),
    ] = None,
) -> None:
    """Measure ops against the official formula, FAISS, SDPA and others; and the whole against the official computation.

    Needs the source tree.

    \b
    Examples:
      seed-fast bench ops --quick
      seed-fast bench e2e
      seed-fast bench --compare old.json
      seed-fast bench --results new.json --compare old.json
    """
    from seed_fast.bench import run

    values = {"threads": threads, "threshold": threshold}
    values |= {"output": output, "compare": compare, "results": results}
    arguments = [what, *["--quick"] * quick, *["--full"] * full, *["--json"] * as_json]
    for name, value in values.items():
        if value is not None:
            arguments += [f"--{name}", str(value.absolute() if isinstance(value, Path) else value)]
    raise typer.Exit(run(arguments))


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False) -> None:
    """Show versions, devices, the compiled module, and which backend runs each op and why."""
    from seed_fast.info import collect, render

    found = collect()
    typer.echo(json.dumps(found) if as_json else render(found))


def main() -> None:
    """Entry point of the console script."""
    open_standard_streams()
    app()
