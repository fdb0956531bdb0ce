"""This package's checkpoint format: a folder with config.json, model.safetensors and README.md (the model card)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from seed_fast import __version__
from seed_fast._files import replace_folder_files
from seed_fast._text import printable
from seed_fast.convert.files import Entry, write_safetensors
from seed_fast.model.config import SeedConfig

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


def write_folder(
    folder: str | Path,
    config: SeedConfig,
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    *,
    trained: bool,
    entries: Mapping[str, Entry] | None = None,
) -> Path:
    """Write a checkpoint folder beside its place, and rename it when it is complete.

    A folder that is already there keeps its files until all new ones are on disk; then each is replaced, weights last.

    Args:
        folder: folder to write; its parents are made.
        config: sizes of the model.
        tensors: mapping of our names to tensors, or an iterable of (name, tensor) pairs, which needs `entries`.
        trained: True if the weights are trained; recorded in the metadata of the weights and on the card.
        entries: name, shape and type of what `tensors` yields, in its order. Default: taken from the mapping.

    Returns:
        The folder's absolute path.
    """
    if isinstance(tensors, Mapping):
        entries = {name: Entry(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        tensors = tensors.items()
    if entries is None:
        raise TypeError("write_folder: entries must be given with an iterable of tensors, got None")
    folder = Path(folder).absolute()
    with replace_folder_files(folder) as staging:
        write_safetensors(staging / WEIGHTS, entries, tensors, {"format": "pt", "trained": json.dumps(trained)})
        (staging / CONFIG).write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
        card = model_card(printable(folder.name), config, entries, trained=trained)
        (staging / CARD).write_text(card, encoding="utf-8")
    return folder


def model_card(name: str, config: SeedConfig, entries: Mapping[str, Entry], *, trained: bool) -> str:
    """Return a model card in Markdown, with the front matter that the Hugging Face hub reads."""
    count = sum(entry.shape.numel() for entry in entries.values())
    types = ", ".join(sorted({str(entry.dtype).removeprefix("torch.") for entry in entries.values()}))
    state = (
        "Trained weights. Their licence is that of the checkpoint they come from."
        if trained
        else "**Untrained**: seeded initial weights. The codes are repeatable and mean nothing yet."
    )
    output = (
        f"[{config.generation_tokens}, {config.generation_dim}]"
        if config.generates_text
        else f"[{config.generation_dim}]"
    )
    return f"""---
library_name: seed_fast
tags: [image-tokenizer, seed]
---
# {name}

A SEED image tokenizer: an image of {config.image_size} x {config.image_size} px becomes {config.num_codes} causally \
ordered codes out of {config.codebook_size}; codes become generation embeddings {output} through the `{config.head}` \
head.

{state}

{count / 1e6:.1f} M parameters, stored as {types}; written by seed_fast {__version__}.

```python
from seed_fast import SeedTokenizer

tok = SeedTokenizer.from_pretrained("path/to/{name}")
codes = tok.encode("photo.jpg")  # [1, {config.num_codes}]
```
"""


def entries_as(entries: Mapping[str, Entry], dtype: torch.dtype | None) -> dict[str, Entry]:
    """Return the entries with their type replaced by `dtype`; None keeps them as they are."""
    return {name: Entry(entry.shape, dtype or entry.dtype) for name, entry in entries.items()}
