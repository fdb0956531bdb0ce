"""`seed-fast tokens build`: pictures with captions to a store of codes and captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from seed_fast.cli._checks import device_option, together_with_other_ranks, tokenizer_option, usage, workers_option
from seed_fast.cli._options import BatchSize, Device, Dtype, Model, RandomWeights, Workers, command
from seed_fast.cli._tokens import StoreOptions, check_store, make_store

if TYPE_CHECKING:
    import torch

    from seed_fast.data.shards import Split
    from seed_fast.data.tokens.record import Items


@dataclass(frozen=True, kw_only=True)
class TokensBuildOptions(StoreOptions):
    """Options of `seed-fast tokens build`."""

    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Pictures with captions: a folder, tar shards ('train-{000..099}.tar'), a list (.json, .jsonl, .tsv), "
            "or shapes:COUNT.",
        ),
    ]
    model: Model = "seed-tiny"
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Name of the tokenizer in the store, as in `tokens import`. Default: --model as given."),
    ] = None
    device: Device = "auto"
    dtype: Dtype = "float32"
    batch_size: BatchSize = 32
    workers: Workers = None
    random_weights: RandomWeights = False


@command(
    stopped="what is done is kept, go on with --resume",
    memory="lower --batch-size (now {batch_size})",
)
def tokens_build(options: TokensBuildOptions) -> int:
    """Turn pictures with captions into a store of codes and captions.

    A bad picture or caption is skipped and named on stderr.

    \b
    Examples:
      seed-fast tokens build shapes:20000 -o shapes-codes
      seed-fast tokens build 'cc3m-{000..331}.tar' -o cc3m-codes --model ./seed-2 --device cuda --resume
      torchrun --nproc-per-node 8 --no-python seed-fast tokens build data/ -o codes --model ./seed-2

    \b
    Exit codes:
      0    every picture is stored
      1    the run failed
      2    the command was wrong; nothing was done
      3    done, but some pictures, captions or inputs were bad
      130  interrupted (143: terminated); go on with --resume
    """
    shard = check_store(options)
    with together_with_other_ranks():
        return _build(options, shard, device_option(options.device))


def _build(options: TokensBuildOptions, shard: Split, device: torch.device) -> int:
    import torch

    from seed_fast.data.image_processor import ImageProcessor
    from seed_fast.data.sources import open_source
    from seed_fast.data.tokens.identity import TokenizerIdentity
    from seed_fast.data.tokens.pictures import picture_items

    with usage():
        source = open_source(options.data, split=options.split, image_root=options.images)

    # Loaded in float32, on which the fingerprint depends; the plan rounds what it needs in another type.
    tok = tokenizer_option(options.model, device, random_weights=options.random_weights)
    name = options.tokenizer or options.model + (" (random weights)" if options.random_weights else "")
    identity = TokenizerIdentity.of_tokenizer(tok, name)
    processor = ImageProcessor(tok.config.image_size, tok.config.resize)
    plan = tok.fast(dtype=getattr(torch, options.dtype))
    workers = workers_option(options.workers)

    def items_from(start: int, bad_input: Callable[[str], None]) -> Items:
        sizes = {"batch_size": options.batch_size, "workers": workers}
        return picture_items(plan, source, processor, start=start, split=shard, **sizes)

    # Fill the store; a resumed run must have the same description.
    run = {"data": options.data, "split": options.split, "images": str(options.images or ""), "samples": len(source)}
    run |= {"dtype": options.dtype, "resize": processor.resize}
    total = len(source) if shard.count == 1 else None
    return make_store(options, shard, identity, run, items_from, total=total, block=options.batch_size)
