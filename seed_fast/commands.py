"""Commands that have not moved to `seed_fast.cli` yet, and names that they share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from seed_fast._terminal import ProgressBar as Progress
from seed_fast._terminal import complain as _complain
from seed_fast.cli._checks import (
    device_option as _device,
)
from seed_fast.cli._checks import (
    file_option,
    folder_option,
    workers_option,
)
from seed_fast.cli._checks import shard_option as _split  # noqa: F401
from seed_fast.cli._checks import together_with_other_ranks as _together_with_other_ranks  # noqa: F401
from seed_fast.cli._run import EXIT_SKIPPED, UsageError, run

DTYPES = ("float32", "bfloat16", "float16")


def _meant(option: str, path: Path, *, folder: bool = False) -> Path:
    return folder_option(option, path) if folder else file_option(option, path)


def _spare_cores() -> int:
    return workers_option(None)


def _out_of_memory() -> type[BaseException]:
    import torch

    return torch.cuda.OutOfMemoryError


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
