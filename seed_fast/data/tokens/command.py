"""What `seed-fast tokens` does: checking options, loading, exit codes. The command line is in `data.tokens_cli`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from seed_fast import commands
from seed_fast._terminal import ProgressBar as Progress
from seed_fast._text import printable
from seed_fast.cli._checks import tokenizer_option
from seed_fast.cli._run import run
from seed_fast.commands import UsageError
from seed_fast.data.shards import Split
from seed_fast.data.tokens.identity import TokenizerIdentity
from seed_fast.data.tokens.record import Item, Summary, record
from seed_fast.data.tokens.store import StoreError, TokenStore, open_tokens
from seed_fast.data.tokens.writer import TokensWriter


@dataclass(frozen=True)
class Target:
    """Where a store goes, as both commands that make one take it."""

    output: Path
    shard: str | None = None
    resume: bool = False
    overwrite: bool = False
    as_json: bool = False


@dataclass(frozen=True)
class BuildOptions:
    """The options of `seed-fast tokens build`, as given."""

    data: str
    target: Target
    model: str = "seed-tiny"
    split: str = "train"
    images: Path | None = None
    device: str = "auto"
    dtype: str = "float32"
    batch_size: int = 32
    workers: int | None = None
    random_weights: bool = False
    tokenizer: str | None = None


@dataclass(frozen=True)
class ImportOptions:
    """The options of `seed-fast tokens import`, as given."""

    inputs: tuple[str, ...]
    target: Target
    tokenizer: str
    captions: str | None = None
    split: str = "train"
    images: Path | None = None
    codebook_size: int = 8192
    codes_per_image: int = 32


def build(options: BuildOptions) -> int:
    """Run `seed-fast tokens build`. Returns the exit code."""
    return _run(options.target, lambda split: _build(options, split))


def import_(options: ImportOptions) -> int:
    """Run `seed-fast tokens import`. Returns the exit code."""
    return _run(options.target, lambda split: _import(options, split))


def info(stores: list[str], *, verify: bool, as_json: bool) -> int:
    """Run `seed-fast tokens info`. Returns the exit code."""
    return run(lambda: _info(stores, verify=verify, as_json=as_json))


def _info(stores: list[str], *, verify: bool, as_json: bool) -> int:
    store = open_tokens(stores)
    if verify:
        for sample in store:
            _verify(sample, store)
    found = _facts(store)
    print(json.dumps(found) if as_json else _table(found, store), flush=True)
    return 0


def _run(target: Target, work: Callable[[Split], int]) -> int:
    def checked() -> int:
        split = commands._split(target.shard)
        _check_output(target, split)
        with commands._together_with_other_ranks():
            return work(split)

    return run(checked, stopped="what is done is kept, go on with --resume")


def _check_output(target: Target, split: Split) -> None:
    """Refuse before anything is loaded."""
    if target.resume and target.overwrite:
        raise UsageError("--resume goes on with what is there, --overwrite drops it: give one of them")
    commands._meant("--output", target.output, folder=True)
    leftovers = TokensWriter(target.output, TokenizerIdentity(""), split).leftovers()
    if leftovers and not (target.resume or target.overwrite):
        raise UsageError(f"{leftovers[0]}: left by an earlier run; --resume goes on with it, --overwrite drops it")


def _build(options: BuildOptions, split: Split) -> int:
    device = commands._device(options.device)
    import torch

    from seed_fast.data.image_processor import ImageProcessor
    from seed_fast.data.sources import open_source
    from seed_fast.data.tokens.pictures import picture_items

    try:
        source = open_source(options.data, split=options.split, image_root=options.images)
    except ValueError as error:
        raise UsageError(str(error)) from None
    # In float32, for its fingerprint: the plan rounds what it needs in another type.
    tok = tokenizer_option(options.model, device, random_weights=options.random_weights)
    config = tok.config
    name = options.tokenizer or options.model + (" (random weights)" if options.random_weights else "")
    identity = TokenizerIdentity.of_tokenizer(tok, name)
    processor = ImageProcessor(config.image_size, config.resize)
    plan = tok.fast(dtype=getattr(torch, options.dtype))
    run = {"data": options.data, "split": options.split, "images": str(options.images or ""), "samples": len(source)}
    run |= {"dtype": options.dtype, "resize": processor.resize, "shard": str(split)}
    workers = commands._spare_cores() if options.workers is None else options.workers

    def items(start: int, bad_input: Callable[[str], None]) -> Iterator[Item]:
        sizes = {"batch_size": options.batch_size, "workers": workers}
        return picture_items(plan, source, processor, start=start, split=split, **sizes)

    try:
        total = len(source) if split.count == 1 else None
        return _fill(options.target, identity, split, run, items, total=total, block=options.batch_size)
    except commands._out_of_memory() as error:
        raise OSError(f"the device has no memory for a batch of {options.batch_size}: lower --batch-size") from error


def _import(options: ImportOptions, split: Split) -> int:
    identity = TokenizerIdentity(options.tokenizer, None, options.codebook_size, options.codes_per_image)
    run = {"inputs": list(options.inputs), "captions": options.captions, "split": options.split}
    run |= {"images": str(options.images or ""), "shard": str(split)}
    items = _joined(options, split) if options.captions is not None else _official(options, split)
    return _fill(options.target, identity, split, run, items)


def _official(options: ImportOptions, split: Split) -> Callable[..., Iterator[Item]]:
    from seed_fast.data.tokens.official import official_items

    for name in options.inputs:
        if name.endswith((".jsonl", ".npz")):
            raise UsageError(
                f"{name}: codes of `seed-fast tokenize` need --captions: which data set do they belong to?"
            )

    def items(start: int, bad_input: Callable[[str], None]) -> Iterator[Item]:
        sizes = {"codes_per_image": options.codes_per_image, "start": start, "split": split}
        return official_items(options.inputs, bad_input, **sizes)

    return items


def _joined(options: ImportOptions, split: Split) -> Callable[..., Iterator[Item]]:
    from seed_fast.data.sources import open_source
    from seed_fast.data.tokens.joined import CaptionsByPath, joined_items

    try:
        captions = CaptionsByPath(open_source(options.captions or "", split=options.split, image_root=options.images))
    except ValueError as error:
        raise UsageError(str(error)) from None

    def items(start: int, bad_input: Callable[[str], None]) -> Iterator[Item]:
        return joined_items(options.inputs, captions, bad_input, start=start, split=split)

    return items


def _fill(
    target: Target,
    identity: TokenizerIdentity,
    split: Split,
    run: dict[str, Any],
    items_from: Callable[..., Iterator[Item]],
    total: int | None = None,
    **options: int,
) -> int:
    """Items into a store, or the rest of them; `total` is the number of places in the input, where it is known."""
    writer = TokensWriter(target.output, identity, split)
    begun = target.resume and bool(writer.leftovers())
    summary, progress = Summary(), Progress()

    def bad_input(line: str) -> None:
        summary.bad_inputs += 1
        progress.line(f"bad input: {line}")

    try:
        if begun:
            writer.open(run, resume=True)
        if total is not None:
            progress.expect(total - writer.next_place)
        if writer.complete:
            summary.resumed, summary.skipped = writer.samples, writer.skipped
            progress.line(f"{target.output}: finished by an earlier run")
        else:
            with closing(items_from(writer.next_place, bad_input)) as items:
                first = next(items, None)
                if not begun:
                    if first is None and split.count == 1:  # nothing has been made or dropped yet
                        error = OSError if summary.bad_inputs else UsageError
                        raise error("the inputs hold no sample that can be read")
                    writer.open(run, resume=False, overwrite=target.overwrite)
                record(writer, chain([] if first is None else [first], items), summary, progress, **options)
    finally:
        writer.close()
        progress.close()
    about = {"output": str(target.output), "tokenizer": str(identity), "shard": str(split)}
    print(json.dumps(about | summary.to_dict()) if target.as_json else _closing(summary, target), flush=True)
    return summary.exit_code


def _closing(summary: Summary, target: Target) -> str:
    rate = summary.written / summary.seconds if summary.seconds else 0.0
    return printable(
        f"{target.output}: {summary.written} samples stored, {rate:.1f} per second"
        + (f"; {summary.resumed} were there before" if summary.resumed else "")
        + (f"; {summary.skipped} skipped" if summary.skipped else "")
        + (f"; {summary.bad_inputs} inputs could not be read to their end" if summary.bad_inputs else "")
    )


def _facts(store: TokenStore) -> dict[str, Any]:
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


def _table(found: dict[str, Any], store: TokenStore) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["kinds"].items())
    rows = {
        "samples": f"{found['samples']} ({kinds})" if kinds else "0",
        "images": f"{found['images']}",
        "tokenizer": str(store.tokenizer),
        "shards": f"{found['shards']}, {found['bytes'] / 1e6:.2f} MB",
        "skipped": f"{found['skipped']} when it was made",
    }
    if len(store):
        first = {name: value for name, value in store[0].items() if name in ("key", "text", "instruction", "questions")}
        rows["first"] = printable(json.dumps(first, ensure_ascii=False)[:200])
    return "\n".join(f"{name:<10} {value}" for name, value in rows.items())


def _verify(sample: dict[str, Any], store: TokenStore) -> None:
    """Every code of a sample is one of the codebook's."""
    images = [sample["codes"]] if "codes" in sample else sample.get("images", sample.get("image_ids", ()))
    for codes in images:
        if codes is not None and codes.size and int(codes.max()) >= store.codebook_size:
            raise StoreError(f"sample {sample['key']!r}: a code must be below {store.codebook_size}, got {codes.max()}")
