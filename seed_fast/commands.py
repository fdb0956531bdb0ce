"""Commands that have not moved to `seed_fast.cli` yet, and names that they share."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from seed_fast._terminal import ProgressBar as Progress
from seed_fast._terminal import complain as _complain
from seed_fast._text import printable
from seed_fast.cli._checks import (
    device_option as _device,
)
from seed_fast.cli._checks import (
    file_option,
    folder_option,
    preset_option,
    tokenizer_option,
    workers_option,
)
from seed_fast.cli._checks import shard_option as _split  # noqa: F401
from seed_fast.cli._checks import together_with_other_ranks as _together_with_other_ranks  # noqa: F401
from seed_fast.cli._run import EXIT_SKIPPED, UsageError, run
from seed_fast.data.image_processor import load_image, read_bytes

DTYPES = ("float32", "bfloat16", "float16")


def _meant(option: str, path: Path, *, folder: bool = False) -> Path:
    return folder_option(option, path) if folder else file_option(option, path)


def _spare_cores() -> int:
    return workers_option(None)


def _out_of_memory() -> type[BaseException]:
    import torch

    return torch.cuda.OutOfMemoryError


def _load_model(options, device):
    from seed_fast import SeedConfig

    if options.random_weights and isinstance(options, ProfileOptions):
        import torch

        from seed_fast.profile.run import tokenizer_for_timing

        preset_option(options.model, random_weights=True)
        torch.manual_seed(0)
        _complain(f"{options.model}: random weights; the codes mean nothing")
        return tokenizer_for_timing(SeedConfig.preset(options.model), device, getattr(torch, options.dtype))
    return tokenizer_option(options.model, device, options.dtype, random_weights=options.random_weights)


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
    from seed_fast.convert.contrast import contrast_folder, load_contrast
    from seed_fast.data.pairs import open_pairs
    from seed_fast.eval.retrieval import retrieval, table

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
