"""Read and write the part of a trained folder that compares pictures with captions; it lies beside a tokenizer's files.

    contrast.safetensors   text tower, projections, temperature: `Stage1Model` without its tokenizer; the metadata has
                           max_tokens, the length to which captions are cut
    vocabulary.txt         or BERT's own tokenizer files

So one folder serves `SeedTokenizer.from_pretrained`, stage 2 and retrieval.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from seed_fast._disguise import disguised
from seed_fast._files import write_beside
from seed_fast.convert.files import CheckpointError
from seed_fast.convert.source import checkpoint_folder
from seed_fast.model.captions import MAX_TOKENS, CaptionTokenizer, open_captions
from seed_fast.model.stage1 import Stage1Model
from seed_fast.model.tokenizer import SeedTokenizer

CONTRAST = "contrast.safetensors"
_PREFIX = "tokenizer."


def save_contrast(folder: Path, tensors: Mapping[str, Tensor], captions: CaptionTokenizer) -> None:
    """Write contrast.safetensors and the caption tokenizer; `SeedTokenizer.save_pretrained` writes the other files.

    Args:
        folder: folder to write into; it is made if it is missing.
        tensors: state dict of a `Stage1Model`; the part of its tokenizer is left out.
        captions: the caption tokenizer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    captions.save(folder)
    own = {name: value for name, value in tensors.items() if not name.startswith(_PREFIX)}
    plain = {name: value.detach().cpu().contiguous() for name, value in own.items()}
    write_beside(folder / CONTRAST, save(plain, metadata={"max_tokens": str(captions.max_tokens)}))


def has_contrast(folder: str | Path) -> bool:
    """Return True if the folder holds contrast.safetensors, which `load_contrast` reads."""
    return (Path(folder) / CONTRAST).is_file()


def contrast_folder(name: str | Path) -> Path:
    """Return the folder of a tokenizer that can read captions: the embedded one, a local one, or that of a hub id.

    Raises:
        ValueError: there is no such folder, or it has no contrast.safetensors.
        OSError: the hub has no such model, or can't be reached.
    """
    try:
        folder = checkpoint_folder(name)
    except FileNotFoundError:
        folder = Path(name)
    if not has_contrast(folder):
        raise ValueError(f"{name}: must be a folder of `seed-fast train` with {CONTRAST}, which reads captions")
    return folder


def load_contrast(folder: str | Path, tokenizer: SeedTokenizer) -> tuple[Stage1Model, CaptionTokenizer]:
    """Load stage 1's model around `tokenizer`, and its caption tokenizer.

    Retrieval, with `tok = SeedTokenizer.from_pretrained(folder)`:
        model, captions = load_contrast(folder, tok)
        scores = model.image_embedding(tok.causal_embeddings(pixels)) @ model.text_embedding(*captions(texts)).T

    Raises:
        FileNotFoundError: the folder has no contrast.safetensors, or no vocabulary.
        CheckpointError: the file is damaged, or doesn't fit the tokenizer.
    """
    path = Path(folder) / CONTRAST
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `seed-fast train stage1` writes it")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            max_tokens = int((file.metadata() or {}).get("max_tokens", MAX_TOKENS))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path}: must be a whole .safetensors file, got {disguised(path) or f'one that does not read: {error}'}"
        ) from None
    # Sizes follow from the tensors themselves.
    words, positions, projection = (
        tensors.get(name, torch.empty(1))
        for name in ("text.word_embedding", "text.position_embedding", "vision_proj.weight")
    )
    model = Stage1Model(tokenizer, len(words), projection_dim=len(projection), max_tokens=len(positions))
    # The file must have exactly the model's tensors, of the same shapes.
    own = {name: value.shape for name, value in model.state_dict().items() if not name.startswith(_PREFIX)}
    stored = {name: value.shape for name, value in tensors.items()}
    for name in sorted(own.keys() | stored.keys()):
        if own.get(name) != stored.get(name):
            wanted, got = (list(shapes[name]) if name in shapes else "nothing" for shapes in (own, stored))
            raise CheckpointError(f"{path}: {name} must be {wanted} for this tokenizer, got {got}")
    model.load_state_dict(tensors, strict=False)  # the tokenizer has its weights already
    return model.eval(), open_captions(folder, max_tokens)
