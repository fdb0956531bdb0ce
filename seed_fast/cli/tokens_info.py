"""`seed-fast tokens info`: what a store holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seed_fast._text import printable
from seed_fast.cli._options import AsJson, command

if TYPE_CHECKING:
    from seed_fast.data.tokens import TokenStore


@dataclass(frozen=True, kw_only=True)
class TokensInfoOptions:
    """Options of `seed-fast tokens info`."""

    stores: Annotated[
        tuple[str, ...], typer.Argument(metavar="STORES...", help="Folders of stores, taken together as one.")
    ]
    verify: Annotated[bool, typer.Option("--verify", help="Also read every sample, to find damage.")] = False
    as_json: AsJson = False


@command()
def tokens_info(options: TokensInfoOptions) -> int:
    """Show what a store holds, and whose codes. Exit code 1 if it is unfinished or damaged, or tokenizers differ."""
    from seed_fast.data.tokens import open_tokens

    store = open_tokens(options.stores)
    if options.verify:
        store.verify()
    facts = _facts(store)
    print(json.dumps(facts) if options.as_json else _table(facts, store), flush=True)
    return 0


def _facts(store: TokenStore) -> dict[str, Any]:
    """Return the facts that --json prints."""
    identity = store.tokenizer
    return {
        "samples": len(store),
        "kinds": {kind: count for kind, count in store.kinds.items() if count},
        "images": store.images,
        "tokenizer": identity.name,
        "weights": identity.weights,
        "encoder": identity.encoder,
        "codebook_size": identity.codebook_size,
        "codes_per_image": identity.codes_per_image,
        "shards": len(store.paths),
        "bytes": sum(path.stat().st_size for path in store.paths),
        "skipped": store.skipped,
    }


def _table(facts: dict[str, Any], store: TokenStore) -> str:
    """Return the text that is printed without --json: a line per fact, and the texts of the first sample."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in facts["kinds"].items())
    rows = {
        "samples": f"{facts['samples']} ({kinds})" if kinds else "0",
        "images": f"{facts['images']}",
        "tokenizer": str(store.tokenizer),
        "shards": f"{facts['shards']}, {facts['bytes'] / 1e6:.2f} MB",
        "skipped": f"{facts['skipped']} when it was made",
    }
    if len(store):
        first = {name: value for name, value in store[0].items() if name in ("key", "text", "instruction", "questions")}
        rows["first"] = printable(json.dumps(first, ensure_ascii=False)[:200])
    return "\n".join(f"{name:<10} {value}" for name, value in rows.items())
