"""`export_official`: write a trained tokenizer as files that the official code reads.

seed_quantizer.pt   the tokenizer without its image encoder, like the released file of that name
eva_vit_g.pth       the image encoder, like the file of LAVIS
stage1.pth          {"model": ...}: Q-Former, text tower and projections, like the official stage 1 saves them
config.json         our own; it has what official files lack, such as the numbers of heads
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from seed_fast._files import replace_folder_files
from seed_fast.convert.contrast import has_contrast, load_contrast
from seed_fast.convert.load import load_tokenizer
from seed_fast.convert.names import VIT_PREFIX
from seed_fast.convert.official import to_official
from seed_fast.convert.save import CONFIG
from seed_fast.convert.source import EVA, OFFICIAL
from seed_fast.convert.stage1 import to_official_stage1

QUANTIZER, STAGE_1 = OFFICIAL[0], "stage1.pth"


def export_official(source: str | Path, destination: str | Path) -> Path:
    """Write the official files of a tokenizer.

    A folder that only stage 1 has trained gives `stage1.pth` and the image encoder alone.

    Args:
        source: what `SeedTokenizer.from_pretrained` takes. A folder with contrast.safetensors gives `stage1.pth` too.
        destination: folder to write; files of these names in it are replaced when the new ones are complete.

    Returns:
        The folder.

    Raises:
        ValueError: the weights are untrained, and the folder holds no stage 1.
        FileNotFoundError, OSError, ValueError: see `SeedTokenizer.from_pretrained`.
    """
    # Which files can be written: the image encoder always, the others if they are trained.
    tok = load_tokenizer(source)
    weights = to_official(tok)
    vit = {name: value for name, value in weights.items() if name.startswith(VIT_PREFIX)}
    contents: dict[str, object] = {EVA: {name.removeprefix(VIT_PREFIX): value for name, value in vit.items()}}
    if tok.trained:
        contents[QUANTIZER] = {name: value for name, value in weights.items() if name not in vit}
    if has_contrast(source):
        stage1 = to_official_stage1(load_contrast(source, tok)[0])
        contents[STAGE_1] = {"model": {name: value for name, value in stage1.items() if name not in vit}}
    if len(contents) == 1:
        raise ValueError(f"{source}: must hold trained weights to export, got initial ones")
    # Write all files into a staging folder, which replaces the old ones at the end.
    destination = Path(destination)
    with replace_folder_files(destination) as staging:
        for name, content in contents.items():
            with open(staging / name, "wb") as file:  # given a path, torch would hide why writing failed
                torch.save(_owned(content), file)
        (staging / CONFIG).write_text(json.dumps(tok.config.to_dict(), indent=2) + "\n", encoding="utf-8")
    return destination


def _owned(content: object) -> object:
    """Return content with copies of its tensors, since `torch.save` would write the whole storage behind a view."""
    if isinstance(content, Tensor):
        return content.detach().cpu().clone()
    return {name: _owned(value) for name, value in content.items()} if isinstance(content, dict) else content
