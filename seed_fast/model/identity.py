"""What tells two tokenizers apart by their codes: a hash over all that decides them, and nothing that doesn't.

A decoder, a head or a name may differ, and the codes mean the same; one entry of the codebook may not.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor

# Fields of SeedConfig that the way from an image to its codes depends on; weights don't show all of them.
FIELDS = (
    "image_size", "patch_size", "resize", "vit_dim", "vit_depth", "vit_heads", "vit_ffn_dim", "qformer_dim",
    "qformer_depth", "qformer_heads", "qformer_ffn_dim", "cross_attention_every", "num_codes", "codebook_size",
    "code_dim",
)  # fmt: skip
PARTS = ("vit.", "vision_norm.", "qformer.", "quantizer.encode_task.", "quantizer.codebook")


def encoder_hash(tok: Any) -> str:
    """A hash of every field and every weight that decides codes.

    Args:
        tok: a `SeedTokenizer`. Weights are compared as float32 numbers, whatever type or device they have.

    Returns:
        16 hexadecimal digits; equal for two tokenizers with equal codes by construction, for others different.

    Example:
        >>> tok.save_pretrained("a copy")
        >>> encoder_hash(SeedTokenizer.from_pretrained("a copy")) == encoder_hash(tok)
        True
    """
    config = {name: value for name, value in vars(tok.config).items() if name in FIELDS}
    total = hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=8)
    tensors = sorted((name, tensor) for name, tensor in tok.state_dict().items() if name.startswith(PARTS))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # hashlib lets go of the interpreter's lock
        for digest in pool.map(_digest, tensors):
            total.update(digest)
    return total.hexdigest()


def _digest(item: tuple[str, Tensor]) -> bytes:
    name, tensor = item
    digest = hashlib.blake2b(f"{name}{list(tensor.shape)}".encode(), digest_size=16)
    digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.digest()
