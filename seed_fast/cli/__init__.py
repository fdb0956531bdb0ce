"""The `seed-fast` command: a table of commands, each in a file of its own.

Nothing heavy is imported before a command needs it, so `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

import seed_fast
from seed_fast._terminal import open_standard_streams
from seed_fast.cli.bench import bench
from seed_fast.cli.caption import caption
from seed_fast.cli.convert import convert
from seed_fast.cli.draw import draw
from seed_fast.cli.eval_lm import eval_lm
from seed_fast.cli.eval_retrieval import eval_retrieval
from seed_fast.cli.info import info
from seed_fast.cli.profile import profile
from seed_fast.cli.reconstruct import reconstruct
from seed_fast.cli.tokenize import tokenize
from seed_fast.cli.tokens_build import tokens_build
from seed_fast.cli.tokens_import import tokens_import
from seed_fast.cli.tokens_info import tokens_info
from seed_fast.cli.train_lm import lm
from seed_fast.cli.train_stage1 import stage1
from seed_fast.cli.train_stage2 import stage2
from seed_fast.cli.ui import ui

GROUPS = {
    "eval": "Measure how good a trained tokenizer or language model is.",
    "tokens": "Make stores of codes and text, which are tokenised once and read by every training.",
    "train": "Train a tokenizer (stage1, then stage2), or a language model on its codes (lm).",
}
COMMANDS: dict[str, Callable[..., Any]] = {
    "tokenize": tokenize,
    "caption": caption,
    "draw": draw,
    "reconstruct": reconstruct,
    "ui": ui,
    "convert": convert,
    "profile": profile,
    "bench": bench,
    "info": info,
    "eval retrieval": eval_retrieval,
    "eval lm": eval_lm,
    "tokens build": tokens_build,
    "tokens import": tokens_import,
    "tokens info": tokens_info,
    "train stage1": stage1,
    "train stage2": stage2,
    "train lm": lm,
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


def main() -> None:
    """Run the command line; the entry point of the console script."""
    open_standard_streams()
    app()
