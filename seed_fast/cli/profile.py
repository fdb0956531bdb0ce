"""`seed-fast profile`: where the time of encoding goes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seed_fast._terminal import complain
from seed_fast.cli._checks import device_option, file_option, folder_option, preset_option, tokenizer_option
from seed_fast.cli._options import Device, DtypeName, Plan, command

if TYPE_CHECKING:
    import torch

    from seed_fast.model.tokenizer import SeedTokenizer


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """Options of `seed-fast profile`."""

    model: Annotated[
        str, typer.Option(help="seed-tiny, a folder, a hub id, or a preset (seed-2, ...) with --random-weights.")
    ] = "seed-tiny"
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="Use a preset without weights: times don't depend on their values."),
    ] = False
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch. Try 1 for latency, 64 for throughput.")] = 8
    device: Device = "auto"
    dtype: Annotated[DtypeName, typer.Option(help="Type in which matrices are multiplied.")] = "float32"
    plan: Plan = "fast"
    image: Annotated[
        Path | None, typer.Option(help="Image to decode and resize. Default: a generated JPEG of 640 x 480 px.")
    ] = None
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1, help="Batches to time, if --seconds allow so many. Default: what fits into 8 seconds, from 3 to 50."
        ),
    ] = None
    seconds: Annotated[
        float,
        typer.Option(
            min=1,
            help="How long to measure. If a batch takes too long for it, less is measured, and the result says so.",
        ),
    ] = 30.0
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Also write profile.json, profile.txt and profile.png."),
    ] = None
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a Chrome trace of one batch, for https://ui.perfetto.dev."),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print profile.json instead of the table.")] = False


@command(memory="lower --batch-size (now {batch_size})")
def profile(options: ProfileOptions) -> int:
    """Show where the time of encoding goes, how far each stage is from what the machine can do, and what would help.

    How to read the row of a stage:

    \b
      share      its part of the time of the whole. Start with the largest.
      GEMM peak  rate of its operations, relative to the fastest matrix product that
                 this machine ran just now. Near 100%: only fewer operations make it faster.
      copy peak  bytes that it has to move per second, relative to copy bandwidth.
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
    # Check everything that can be checked before the model is loaded, which may take minutes.
    output = None if options.output is None else folder_option("--output", options.output)
    trace = None if options.trace is None else file_option("--trace", options.trace)
    device = device_option(options.device)
    image = None
    if options.image is not None:
        from seed_fast.data.image_processor import load_image, read_bytes

        image = read_bytes(options.image)
        load_image(image, str(options.image))

    import torch

    from seed_fast.profile import run
    from seed_fast.profile.text import render

    # The plan rounds the weights of its products itself, and keeps the others in float32.
    fast = options.plan == "fast"
    tok = _load(options, device, "float32" if fast else options.dtype)
    result = run.profile(
        tok.fast(dtype=getattr(torch, options.dtype)) if fast else tok,
        model=options.model + (" (random weights)" if options.random_weights else ""),
        batch_size=options.batch_size,
        image=image,
        rounds=options.rounds,
        trace=trace,
        seconds=options.seconds,
        say=complain,
    )

    if output is not None:
        _, missing = run.write(result, output)
        if missing:
            complain(missing)
    print(json.dumps(result) if options.as_json else render(result), flush=True)
    return 0


def _load(options: ProfileOptions, device: torch.device, dtype: str) -> SeedTokenizer:
    """Load the tokenizer to profile; with --random-weights, fill it faster than by the official initialisation."""
    if not options.random_weights:
        return tokenizer_option(options.model, device, dtype)
    import torch

    from seed_fast.model.config import SeedConfig
    from seed_fast.profile.run import tokenizer_for_timing

    preset_option(options.model, random_weights=True)
    torch.manual_seed(0)
    complain(f"{options.model}: random weights; the codes mean nothing")
    return tokenizer_for_timing(SeedConfig.preset(options.model), device, getattr(torch, dtype))
