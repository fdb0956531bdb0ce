"""`seed-fast eval retrieval`: image-text retrieval with a trained tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from seed_fast._terminal import ProgressBar, complain
from seed_fast.cli._checks import device_option, usage, workers_option
from seed_fast.cli._options import AsJson, Device, DtypeName, ImageRoot, Split, TrainedModel, Workers, command
from seed_fast.cli._run import EXIT_SKIPPED


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions:
    """Options of `seed-fast eval retrieval`."""

    data: Annotated[
        str,
        typer.Argument(help="Images and captions: a folder, shards, a list, a Karpathy JSON file, or shapes:COUNT."),
    ]
    model: TrainedModel = "seed-tiny"
    split: Split = "test"
    images: ImageRoot = None
    codes: Annotated[
        bool, typer.Option(help="Also measure embeddings reconstructed from codes; needs a tokenizer of stage 2.")
    ] = True
    device: Device = "auto"
    dtype: Annotated[DtypeName, typer.Option(help="Type of the model's weights and computation.")] = "float32"
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 64
    workers: Workers = None
    as_json: AsJson = False


@command()
def eval_retrieval(options: RetrievalOptions) -> int:
    """Measure zero-shot image-text retrieval: R@1, R@5, R@10 both ways, and their mean.

    It is measured for the causal embeddings, from which codes are made, and for the embeddings that the decoder
    reconstructs from codes (Table 1 of the paper).

    \b
    Examples:
      seed-fast eval retrieval shapes:1000
      seed-fast eval retrieval dataset_flickr30k.json --images flickr30k-images/ --model ./run/final --json

    \b
    Exit codes:
      0    all pictures were used
      1    it failed
      2    the command was wrong
      3    done, but some pictures or captions were bad
    """
    device = device_option(options.device)
    import torch

    from seed_fast import SeedTokenizer
    from seed_fast.convert.contrast import contrast_folder, load_contrast
    from seed_fast.data.pairs import open_pairs
    from seed_fast.eval import retrieval as evaluation

    # Load the tokenizer with its text encoder, and open the data set.
    with usage("--model "):
        folder = contrast_folder(options.model)
    tok = SeedTokenizer.from_pretrained(folder, device=device, dtype=getattr(torch, options.dtype))
    model, captions = load_contrast(folder, tok)
    with usage():
        pairs = open_pairs(
            options.data,
            image_size=tok.config.image_size,
            resize=tok.config.resize,
            batch_size=options.batch_size,
            split=options.split,
            workers=workers_option(options.workers),
            shuffle=False,
            drop_last=False,
            all_captions=True,
            image_root=options.images,
        )
    # Embed all pictures and captions, and rank them.
    progress = ProgressBar()
    try:
        result = evaluation.retrieval(model, captions, pairs, codes=options.codes, advance=progress.advance)
    finally:
        progress.close()
        pairs.close()

    about: dict[str, Any] = {
        "data": options.data,
        "split": options.split,
        "model": options.model,
        "device": str(device),
    }
    about |= {"dtype": options.dtype, "skipped": pairs.skipped}
    print(json.dumps(about | result.to_dict()) if options.as_json else evaluation.table(result), flush=True)
    if pairs.skipped:
        complain(f"{pairs.skipped} pictures or captions were bad and are left out")
    return EXIT_SKIPPED if pairs.skipped else 0
