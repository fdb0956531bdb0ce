"""Three hashes of weights, each for one question.

encoder_hash   do two tokenizers give the same codes? Covers every field and weight that decides codes, and no others:
               the decoder, the head or the name may differ
fingerprint    are two checkpoints the same? Samples of every tensor; instant, even for seed-2
checksum       are these exactly the weights that cached features were computed with? Every byte
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

# Fields of SeedConfig that decide how an image becomes codes; the shapes of weights don't show all of them.
FIELDS = (
    "image_size", "patch_size", "resize", "vit_dim", "vit_depth", "vit_heads", "vit_ffn_dim", "qformer_dim",
    "qformer_depth", "qformer_heads", "qformer_ffn_dim", "cross_attention_every", "num_codes", "codebook_size",
    "code_dim",
)  # fmt: skip
PARTS = ("vit.", "vision_norm.", "qformer.", "quantizer.encode_task.", "quantizer.codebook")


def encoder_hash(tok: Any) -> str:
    """Hash every field of the config and every weight that decides codes.

    Args:
        tok: a `SeedTokenizer`. Weights are compared as float32 numbers, whatever type or device they have.

    Returns:
        16 hexadecimal digits, equal for two tokenizers if those fields and weights are equal.

    Examples:
        >>> from seed_fast import SeedTokenizer
        >>> tok, again = (SeedTokenizer.from_pretrained("seed-tiny") for _ in range(2))
        >>> encoder_hash(tok) == encoder_hash(again)
        True
    """
    config = {name: value for name, value in vars(tok.config).items() if name in FIELDS}
    total = hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=8)
    tensors = sorted((name, tensor) for name, tensor in tok.state_dict().items() if name.startswith(PARTS))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # hashlib lets go of the interpreter's lock
        for digest in pool.map(_digest, tensors):
            total.update(digest)
    return total.hexdigest()


def fingerprint(tok: nn.Module) -> str:
    """Hash every tensor's name, shape and up to 64 of its values, which tells two checkpoints apart in no time.

    Args:
        tok: any module, usually a `SeedTokenizer`.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tok.state_dict().items()):
        values = tensor.detach().flatten()
        sample = values[:: max(1, len(values) // 64)][:64].float().cpu().numpy()
        digest.update(f"{name}{list(tensor.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()


def checksum(*modules: nn.Module) -> str:
    """Compute the CRC-32 of all weights of the modules, byte by byte.

    Returns:
        8 hexadecimal digits.
    """
    value = 0
    for module in modules:
        for tensor in module.state_dict().values():
            value = zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def _digest(item: tuple[str, Tensor]) -> bytes:
    """Return the digest of one named tensor: of its name, shape and float32 values."""
    name, tensor = item
    digest = hashlib.blake2b(f"{name}{list(tensor.shape)}".encode(), digest_size=16)
    digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.digest()
