"""What `seed-fast eval lm` does: options to models and scenes, numbers out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seed_fast._files import write_beside
from seed_fast.cli._run import run
from seed_fast.commands import UsageError, _complain, _device
from seed_fast.generate.command import Options, after_checks, check_tokenizer, language_model

if TYPE_CHECKING:
    from seed_fast.data.shapes import Scene

REPORT, FIGURE = "lm.json", "perplexity.svg"
NO_MATPLOTLIB = f"{FIGURE} needs matplotlib: pip install 'seed_fast[bench]'"


@dataclass(frozen=True, kw_only=True)
class LmOptions(Options):
    """The options of `seed-fast eval lm`, as given; `output` is a folder."""

    data: str = "shapes:200"
    split: str = "test"
    shuffled_lm: Path | None = None
    as_json: bool = False


def eval_lm(options: LmOptions) -> int:
    """Run `seed-fast eval lm`. Returns the exit code."""
    return run(lambda: _eval_lm(options))


def _eval_lm(options: LmOptions) -> int:
    scenes = _scenes(options.data, options.split)
    if options.output is not None and options.output.exists() and not options.output.is_dir():
        raise UsageError(f"{options.output}: --output must be a folder, got a file")
    decoding = after_checks(options)
    from seed_fast import SeedTokenizer
    from seed_fast.convert.contrast import contrast_folder, load_contrast
    from seed_fast.eval.lm import evaluate, table

    try:
        folder = contrast_folder(options.model)
    except ValueError as error:
        raise UsageError(str(error)) from None
    tok = SeedTokenizer.from_pretrained(folder, device=_device(options.device))
    tower, captions = load_contrast(folder, tok)
    speaker = language_model(options, options.lm)
    check_tokenizer(options, speaker, tok)
    shuffled = None
    if options.shuffled_lm is not None:
        shuffled = language_model(options, options.shuffled_lm)
        check_tokenizer(options, shuffled, tok, options.shuffled_lm)
    report = evaluate(
        speaker, tower, captions, scenes, decoding=decoding, shuffled=shuffled, batch_size=options.batch_size
    )
    about = {"lm": str(options.lm), "model": options.model, "data": options.data, "split": options.split}
    about |= {"beams": options.beams, "top_p": options.top_p, "dtype": options.dtype}
    found = about | report.to_dict()
    if options.output is not None:
        _write(options.output, found)
    print(json.dumps(found) if options.as_json else table(report), flush=True)
    return 0


def _scenes(data: str, split: str) -> list[Scene]:
    """Only of `shapes` is known what a picture shows."""
    from seed_fast.data import shapes
    from seed_fast.data.sources import ShapesSource, open_source

    try:
        source = open_source(data, split=split)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not isinstance(source, ShapesSource):
        raise UsageError(f"{data}: must be shapes:COUNT, whose pictures are known exactly")
    samples = [source.sample(number, 0) for number in range(len(source))]
    return [shapes.scene(sample.seed, sample.index, sample.split) for sample in samples]


def _write(folder: Path, found: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_beside(folder / REPORT, (json.dumps(found, indent=1) + "\n").encode())
    try:
        from seed_fast.eval.figure import draw
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        _complain(NO_MATPLOTLIB)
        return
    title = f"Perplexity of codes, {found['pictures']} pictures of {found['data'].partition(':')[0]}"
    write_beside(folder / FIGURE, draw(found["perplexity"], title))
