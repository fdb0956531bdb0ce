"""`seed-fast tokens import`: codes that exist already to a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from seed_fast.cli._checks import together_with_other_ranks, usage
from seed_fast.cli._options import command
from seed_fast.cli._run import UsageError
from seed_fast.cli._tokens import StoreOptions, check_store, make_store

if TYPE_CHECKING:
    from seed_fast.data.shards import Split
    from seed_fast.data.tokens.record import Items, ItemsFrom


@dataclass(frozen=True, kw_only=True)
class TokensImportOptions(StoreOptions):
    """Options of `seed-fast tokens import`."""

    inputs: Annotated[
        tuple[str, ...],
        typer.Argument(
            metavar="INPUTS...",
            help="Official pre-tokenised tar shards; with --captions what `seed-fast tokenize` wrote (.jsonl, .npz).",
        ),
    ]
    tokenizer: Annotated[
        str,
        typer.Option(help="Name of the tokenizer that made the codes, such as seed-2: a store has codes of one alone."),
    ]
    captions: Annotated[
        str | None,
        typer.Option(help="Data set of the pictures, as `tokens build` reads it; captions are looked up by path."),
    ] = None
    codebook_size: Annotated[
        int, typer.Option(min=1, help="Number of entries of the tokenizer's codebook; every code is below it.")
    ] = 8192
    codes_per_image: Annotated[int, typer.Option(min=1, help="Number of codes that each image has.")] = 32


@command(stopped="what is done is kept, go on with --resume", memory="import fewer inputs at once")
def tokens_import(options: TokensImportOptions) -> int:
    """Turn codes that were made earlier into a store of codes and captions.

    Official shards hold pickles, which can run any code when they are loaded as usual. Here they can't: a pickle with
    anything else than dict, list, tuple, str, int, float, bool and None is refused. Such a member, or a damaged one,
    is skipped and named.

    \b
    Examples:
      seed-fast tokens import 'cc3m/part-0000/*.tar' -o cc3m-codes --tokenizer seed-2
      seed-fast tokens import codes.jsonl --captions photos/captions.jsonl -o codes --tokenizer seed-2

    Exit codes are those of `tokens build`.
    """
    shard = check_store(options)
    with together_with_other_ranks():
        from seed_fast.data.tokens.identity import TokenizerIdentity

        identity = TokenizerIdentity(options.tokenizer, None, options.codebook_size, options.codes_per_image)
        items_from = _official(options, shard) if options.captions is None else _joined(options, shard)
        run = {"inputs": list(options.inputs), "captions": options.captions, "split": options.split}
        run |= {"images": str(options.images or "")}
        return make_store(options, shard, identity, run, items_from)


def _official(options: TokensImportOptions, shard: Split) -> ItemsFrom:
    """Return what reads the members of official shards."""
    from seed_fast.data.tokens.official import official_items

    for name in options.inputs:
        if name.endswith((".jsonl", ".npz")):
            raise UsageError(
                f"{name}: codes of `seed-fast tokenize` need --captions: which data set do they belong to?"
            )

    def items_from(start: int, bad_input: Callable[[str], None]) -> Items:
        count = options.codes_per_image
        return official_items(options.inputs, bad_input, codes_per_image=count, start=start, split=shard)

    return items_from


def _joined(options: TokensImportOptions, shard: Split) -> ItemsFrom:
    """Return what joins the codes of `seed-fast tokenize` with the captions of their data set."""
    from seed_fast.data.sources import open_source
    from seed_fast.data.tokens.joined import CaptionsByPath, joined_items

    with usage():
        captions = CaptionsByPath(open_source(options.captions or "", split=options.split, image_root=options.images))

    def items_from(start: int, bad_input: Callable[[str], None]) -> Items:
        return joined_items(options.inputs, captions, bad_input, start=start, split=shard)

    return items_from
