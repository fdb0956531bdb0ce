"""The `seed-fast` command: a table of commands, each in a file of its own.

Nothing heavy is imported before a command needs it, so `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

import seed_fast
from seed_fast._terminal import open_standard_streams
from seed_fast.cli.convert import convert
from seed_fast.cli.info import info
from seed_fast.cli.profile import profile
from seed_fast.cli.tokenize import tokenize
from seed_fast.cli.tokens_build import tokens_build
from seed_fast.cli.tokens_import import tokens_import
from seed_fast.cli.tokens_info import tokens_info
from seed_fast.eval.cli import app as eval_app
from seed_fast.generate import cli as generate_cli
from seed_fast.train.cli import app as train_app
from seed_fast.train.lm_cli import lm as train_lm

GROUPS = {
    "tokens": "Data sets as codes and text: tokenised once, read by every training.",
}
COMMANDS = {
    "tokenize": tokenize,
    "caption": generate_cli.caption,
    "draw": generate_cli.draw,
    "convert": convert,
    "profile": profile,
    "info": info,
    "tokens build": tokens_build,
    "tokens import": tokens_import,
    "tokens info": tokens_info,
}


def _assemble() -> typer.Typer:
    """Make the application of the table."""
    plain: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None}
    root = typer.Typer(
        name="seed-fast",
        help="The SEED image tokenizer: an image becomes 32 causally ordered codes, and back.",
        epilog="Start with: seed-fast tokenize photos/ --output codes.jsonl",
        add_completion=False,
        pretty_exceptions_enable=False,
        **plain,
    )
    groups = {"": root} | {name: typer.Typer(help=text, **plain) for name, text in GROUPS.items()}
    for path, function in COMMANDS.items():
        group, _, name = path.rpartition(" ")
        groups[group].command(name)(function)
    for name in GROUPS:
        root.add_typer(groups[name], name=name)
    return root


app = _assemble()
train_app.command()(train_lm)
app.add_typer(train_app, name="train")
app.add_typer(eval_app, name="eval")


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


def main() -> None:
    """Run the command line; the entry point of the console script."""
    open_standard_streams()
    app()
