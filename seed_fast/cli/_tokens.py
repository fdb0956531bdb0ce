"""The part that `tokens build` and `tokens import` share: options, checks before anything is loaded, and the output."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seed_fast._terminal import ProgressBar
from seed_fast._text import printable
from seed_fast.cli import _options
from seed_fast.cli._checks import check_resumable, folder_option, same_run, shard_option
from seed_fast.cli._run import EXIT_SKIPPED, UsageError

if TYPE_CHECKING:
    from seed_fast.data.shards import Split
    from seed_fast.data.tokens.identity import TokenizerIdentity
    from seed_fast.data.tokens.record import FillSummary, ItemsFrom


@dataclass(frozen=True, kw_only=True)
class StoreOptions(_options.ResumableOptions):
    """Options of a command that makes a token store."""

    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder of the store to make.")]
    split: _options.Split = "train"
    images: _options.ImageRoot = None
    as_json: _options.AsJson = False


def check_store(options: StoreOptions) -> Split:
    """Check, before anything is loaded, that the store can be made, and return the part that this process makes."""
    from seed_fast.data.tokens.identity import TokenizerIdentity
    from seed_fast.data.tokens.writer import TokensWriter

    shard = shard_option(options.shard)
    folder_option("--output", options.output)
    leftovers = TokensWriter(options.output, TokenizerIdentity(""), shard).leftovers()
    check_resumable(options.resume, options.overwrite, leftovers)
    return shard


def make_store(
    options: StoreOptions,
    shard: Split,
    identity: TokenizerIdentity,
    run: dict[str, Any],
    items_from: ItemsFrom,
    *,
    total: int | None = None,
    block: int | None = None,
) -> int:
    """Fill the store, print a summary, and return the exit code.

    Args:
        options: output folder, --resume, --overwrite and --json.
        shard: the part that this process makes.
        identity: whose codes these are.
        run: description of everything on which the samples depend; a resumed run must have the same.
        items_from: gives the items from a place on.
        total: number of places in the input, if it is known.
        block: number of samples that are recorded together; default: `BLOCK`.
    """
    from seed_fast.data.tokens.record import BLOCK, NoSamples, fill
    from seed_fast.data.tokens.writer import TokensWriter

    writer = TokensWriter(options.output, identity, shard)
    progress = ProgressBar()
    try:
        with same_run():
            summary = fill(
                writer, run | {"shard": str(shard)}, items_from, progress, resume=options.resume,
                overwrite=options.overwrite, total=total, block=block or BLOCK,
            )  # fmt: skip
    except NoSamples as error:
        raise UsageError(str(error)) from None
    finally:
        progress.close()

    exit_code = EXIT_SKIPPED if summary.left_out else 0
    about = {"output": str(options.output), "tokenizer": str(identity), "shard": str(shard)}
    about |= asdict(summary) | {"exit_code": exit_code}
    print(json.dumps(about) if options.as_json else _closing_line(summary, options), flush=True)
    return exit_code


def _closing_line(summary: FillSummary, options: StoreOptions) -> str:
    rate = summary.written / summary.seconds if summary.seconds else 0.0
    return printable(
        f"{options.output}: {summary.written} samples stored, {rate:.1f} per second"
        + (f"; {summary.resumed} were there before" if summary.resumed else "")
        + (f"; {summary.skipped} skipped" if summary.skipped else "")
        + (f"; {summary.bad_inputs} inputs could not be read to their end" if summary.bad_inputs else "")
    )
