"""`seed-fast eval lm`: captions, drawings and perplexity of a language model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seed_fast._terminal import complain
from seed_fast.cli._checks import device_option, folder_option, usage
from seed_fast.cli._language_model import (
    LanguageModelOptions,
    check_same_tokenizer,
    load_language_model,
    strategy_option,
)
from seed_fast.cli._options import AsJson, TrainedModel, command
from seed_fast.cli._run import UsageError

if TYPE_CHECKING:
    from seed_fast.data.shapes import Scene


@dataclass(frozen=True, kw_only=True)
class EvalLmOptions(LanguageModelOptions):
    """Options of `seed-fast eval lm`."""

    data: Annotated[str, typer.Argument(help="Pictures to measure on: shapes:COUNT[,seed=N], a generated world.")] = (
        "shapes:200"
    )
    model: TrainedModel = "seed-tiny"
    split: Annotated[str, typer.Option(help="Split of shapes: train, val or test.")] = "test"
    shuffled_lm: Annotated[
        Path | None,
        typer.Option(
            help="Language model trained in the same way on codes in shuffled order, to compare perplexities with."
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Also write lm.json and perplexity.svg."),
    ] = None
    as_json: AsJson = False


@command()
def eval_lm(options: EvalLmOptions) -> int:
    """Measure how well a language model captions and draws, on pictures of a generated world.

    Measured are the share of right captions of held-out pictures; how often drawings retrieve the held-out caption
    they were drawn for; how many answers are whole images, with and without the constraint; and the perplexity of
    codes, in causal and in shuffled order.

    \b
    Examples:
      seed-fast eval lm --lm examples/seed-opt-tiny
      seed-fast eval lm shapes:1000 --lm runs/lm --model runs/stage2 --beams 4 -o report/ --json
    """
    # Check everything that can be wrong with the command before anything is loaded.
    scenes = _scenes(options.data, options.split)
    output = None if options.output is None else folder_option("--output", options.output)
    strategy = strategy_option(options)
    from seed_fast import SeedTokenizer
    from seed_fast.convert.contrast import contrast_folder, load_contrast
    from seed_fast.eval.language_model import evaluate, table
    from seed_fast.eval.results import write_results

    with usage("--model "):
        folder = contrast_folder(options.model)
    device = device_option(options.device)

    # Load the tokenizer with its text tower, and the language models that have learned its codes.
    tok = SeedTokenizer.from_pretrained(folder, device=device)
    tower, captions = load_contrast(folder, tok)
    language_model = load_language_model(options, device)
    check_same_tokenizer(options, language_model, tok)
    shuffled = None
    if options.shuffled_lm is not None:
        shuffled = load_language_model(options, device, options.shuffled_lm)
        check_same_tokenizer(options, shuffled, tok, options.shuffled_lm)

    result = evaluate(
        language_model, tower, captions, scenes, strategy=strategy, shuffled=shuffled, batch_size=options.batch_size
    )
    about: dict[str, Any] = {
        "lm": str(options.lm),
        "model": options.model,
        "data": options.data,
        "split": options.split,
    }
    about |= {"beams": options.beams, "top_p": strategy.top_p, "dtype": options.dtype}
    record = about | result.to_dict()
    # Printed first, so that a disk that is full by now doesn't cost the numbers.
    print(json.dumps(record) if options.as_json else table(result), flush=True)
    if output is not None:
        missing = write_results(output, record)
        if missing:
            complain(missing)
    return 0


def _scenes(data: str, split: str) -> list[Scene]:
    """Return the scenes of a `shapes` data set, the only kind of data whose pictures are known exactly."""
    from seed_fast.data import shapes
    from seed_fast.data.sources import ShapesSource, open_source

    with usage():
        source = open_source(data, split=split)
    if not isinstance(source, ShapesSource):
        raise UsageError(f"{data}: must be shapes:COUNT, whose pictures are known exactly")
    samples = [source.sample(number, 0) for number in range(len(source))]
    return [shapes.scene(sample.seed, sample.index, sample.split) for sample in samples]
