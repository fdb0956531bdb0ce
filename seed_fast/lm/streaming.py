"""Writing a language model that no rank holds whole, as the files that transformers reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from seed_fast.convert.files import Entry, write_safetensors
from seed_fast.distributed import whole

SHARD_BYTES = 4 << 30  # largest file of the finished model


def stream_model(folder: Path | None, model: Any, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the weights of a sharded model as transformers reads them. Every rank must call.

    Only one whole parameter at a time is in memory.

    Args:
        folder: folder of the files, on the rank that writes; None on all others.
        model: a model of transformers.
        shard_bytes: largest size of a file, unless a single parameter is larger.
    """
    named = dict(model.named_parameters())  # a tied matrix comes once, as transformers stores it
    if folder is None:
        for p in named.values():
            whole(p)
        return

    # Assign the parameters to files, in their order.
    groups: list[dict[str, Entry]] = [{}]
    size = 0
    for name, p in named.items():
        count = p.numel() * p.element_size()
        if groups[-1] and size + count > shard_bytes:
            groups.append({})
            size = 0
        groups[-1][name] = Entry(p.shape, p.dtype)
        size += count

    def tensors(names: Mapping[str, Entry]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            yield name, whole(named[name])

    # Write file after file, gathering each parameter when it is its turn, and the index of several files.
    files = ["model.safetensors"]
    if len(groups) > 1:
        files = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    for file, entries in zip(files, groups, strict=True):
        write_safetensors(folder / file, entries, tensors(entries), {"format": "pt"})
    if len(groups) > 1:
        places = {name: file for file, entries in zip(files, groups, strict=True) for name in entries}
        total = sum(p.numel() * p.element_size() for p in named.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
