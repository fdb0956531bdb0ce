"""An estimate of a training run's memory and speed, before it starts.

Parameters are counted on a model without storage. Memory is a sum of what is kept: weights, gradients, AdamW's two
moments, activations per token, and one chunk of logits. Speed is the device's measured rate of matrix products, times
the share of it that training reaches, over the FLOPs of a token: 2 per weight forward, 2 for the gradient of the
activations, 2 for that of the weights that learn, and the forward pass again where activations are computed again.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from seed_fast.lm.loss import chunk_rows
from seed_fast.lm.model import Lora, add_adapter, is_tied
from seed_fast.lm.pretrained import read_config, read_tokenizer
from seed_fast.lm.vocabulary import END, Vocabulary

REACHED = 0.5  # share of the matrix rate that training reaches; benchmarks/e2e/train_lm.py measures it


@dataclass(frozen=True)
class RunEstimate:
    """What a run needs on one rank, in bytes unless said otherwise, and how fast it will be."""

    parameters: int  # count
    trainable: int  # count
    weights: int
    gradients: int
    optimizer: int
    activations: int  # of one micro-batch
    activations_checkpointed: int  # the same, with only the input of each block kept
    logits: int
    available: int
    flops_per_token: float
    tokens_per_s: float  # over all ranks
    checkpointed: bool
    host_loading: int  # of a machine's own memory, by all of its ranks, while they read the model
    host_saving: int  # the same while a checkpoint is written

    @property
    def total(self) -> int:
        """Memory of the device that the run needs, in bytes, with or without activation checkpointing as chosen."""
        kept = self.activations_checkpointed if self.checkpointed else self.activations
        return self.weights + self.gradients + self.optimizer + kept + self.logits

    @property
    def fits(self) -> bool:
        """True if the device has that much memory."""
        return self.total <= self.available

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, the total and `fits`, for JSON."""
        return asdict(self) | {"total": self.total, "fits": self.fits}


def estimate_folder(
    model: str | Path, base: str | Path | None = None, *, codebook_size: int, **run: Any
) -> RunEstimate:
    """Estimate a run on the model of a folder; only its config and its tokenizer are read.

    Args:
        model: folder or hub id of a model, or of an adapter that is trained further.
        base: of an adapter: its base, where that is no longer where the adapter says.
        codebook_size: number of codes.
        run: the other arguments of `estimate`.
    """
    config, tokenizer = read_config(model, base), read_tokenizer(model)
    text_tokens = len(tokenizer)
    if END in tokenizer.get_vocab():
        text_tokens -= len(Vocabulary.of_tokenizer(tokenizer).new_ids)
    return estimate(config, text_tokens=text_tokens, codebook_size=codebook_size, **run)


def estimate(
    config: Any,
    *,
    text_tokens: int,
    codebook_size: int,
    lora: Lora | None,
    dtype: torch.dtype,
    tokens: int,
    device: torch.device,
    world: int = 1,
    local_world: int = 1,
    fsdp: bool = False,
    checkpointed: bool = False,
) -> RunEstimate:
    """Estimate the memory and the speed of a run, without building its model.

    Args:
        config: transformers' config of the base.
        text_tokens: number of tokens of its tokenizer, before image tokens are added.
        codebook_size: number of codes, each of which becomes a token.
        lora: the adapter; None: every weight learns.
        dtype: the type that the run computes in.
        tokens: tokens of a micro-batch on one rank, without padding.
        device: where the run will be; its rate of matrix products is measured, its free memory read.
        world: number of ranks.
        local_world: number of ranks on this machine.
        fsdp: True if ranks shard weights, gradients and moments.
        checkpointed: True if activations are recomputed in the backward pass.
    """
    # What is kept: trained weights are float32, frozen ones have the run's type.
    size = dtype.itemsize
    parameters, trainable, products, learning = count(
        config, text_tokens=text_tokens, codebook_size=codebook_size, lora=lora
    )
    parts = world if fsdp else 1
    frozen = (parameters - trainable) * size
    per_token = activations_per_token(config, size, lora)
    layers, width = config.num_hidden_layers, config.hidden_size
    rows = text_tokens + codebook_size + 2
    whole = frozen + 4 * trainable
    in_parts = fsdp and lora is None and world > 1  # then the first rank alone reads it, and hands out parts
    # While a checkpoint is written, and while logits are computed in chunks.
    parameter_and_moments = 3 * 4 * trainable
    chunk = min(tokens, chunk_rows(rows)) * rows * (4 if size == 4 else 4 + size)
    new_rows = codebook_size + 2 if lora else rows
    # Speed: forward and the activations' gradient, the weights' gradient, and the forward pass again.
    flops = 4.0 * products + 2.0 * learning + (2.0 * products if checkpointed else 0.0)
    rate = matrix_rate(device, dtype, config)
    return RunEstimate(
        parameters=parameters,
        trainable=trainable,
        weights=(frozen + 4 * trainable) // parts,
        gradients=4 * trainable // parts,
        optimizer=8 * trainable // parts,
        activations=tokens * layers * per_token,
        activations_checkpointed=tokens * (layers * width * size + per_token),
        logits=chunk + 4 * new_rows * width,
        available=available_bytes(device),
        flops_per_token=flops,
        tokens_per_s=REACHED * rate / flops * world,
        checkpointed=checkpointed,
        host_loading=whole if in_parts else whole * local_world,
        # Sharded: one of the three at a time, as numbers and as bytes of a file. Otherwise every rank gathers all.
        host_saving=2 * 4 * trainable * local_world // world if fsdp else parameter_and_moments * local_world,
    )


def count(config: Any, *, text_tokens: int, codebook_size: int, lora: Lora | None) -> tuple[int, int, int, int]:
    """Count the parameters of a model that is trained, on a copy without storage.

    Returns:
        Numbers of all parameters, of trainable ones, of those in matrix products (embeddings are only looked up), and
        of trainable ones in matrix products.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    config.vocab_size = max(config.vocab_size, text_tokens + codebook_size + 2)
    config.pad_token_id = None  # transformers would zero the padding row, and there is no storage to write to
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.tie_weights()
        if lora is not None:
            end = text_tokens + codebook_size
            model = add_adapter(model, Vocabulary(text_tokens, codebook_size, end, end + 1, 0, 0, 0), lora)
    named = dict(model.named_parameters())
    looked_up = () if is_tied(_inner(model)) else ("embed_tokens",)
    looked_up = (*looked_up, "embed_positions")
    products = {n: p for n, p in named.items() if p.ndim == 2 and not any(part in n for part in looked_up)}
    return (
        sum(p.numel() for p in named.values()),
        sum(p.numel() for p in named.values() if p.requires_grad),
        sum(p.numel() for p in products.values()),
        sum(p.numel() for p in products.values() if p.requires_grad),
    )


def _inner(model: Any) -> Any:
    """Return transformers' model, which may be inside peft's."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def activations_per_token(config: Any, size: int, lora: Lora | None) -> int:
    """Count the bytes that one block keeps per token for the backward pass; `size` is bytes per number."""
    width = config.hidden_size
    if config.model_type == "opt":
        inner = config.ffn_dim
        # Kept: the residual stream, its norm, queries, keys, values, attention's output laid out by samples and by
        # tokens; the residual stream and its norm again; ReLU's output.
        numbers = 9 * width + inner
        single = 2 * width * (size if config.dropout else 0)  # the dropout masks of both branches
        dropped = 5 * width + inner  # inputs of the six linear layers
    else:
        inner = config.intermediate_size
        heads = config.num_attention_heads
        kv = 2 * width * getattr(config, "num_key_value_heads", heads) // heads
        numbers = 4 * width + 2 * kv + 4 * inner
        single = 2 * 3 * width * 4  # norms are computed in float32
        dropped = 6 * width + inner
    return numbers * size + single + (dropped if lora is not None and lora.dropout else 0)


def matrix_rate(device: torch.device, dtype: torch.dtype, config: Any) -> float:
    """Measure the FLOP/s of matrix products of the model's width: the median of 3 to 20 products, in half a second."""
    width = config.hidden_size
    rows = 4096 if device.type == "cuda" else 256
    a = torch.randn(rows, width, device=device, dtype=dtype)
    b = torch.randn(width, 4 * width, device=device, dtype=dtype)
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 3 or (len(times) < 20 and time.perf_counter() - begin < 0.5):
        start = time.perf_counter()
        (a @ b).flatten()[0].item()  # waits for the device
        times.append(time.perf_counter() - start)
    return 2.0 * rows * width * 4 * width / statistics.median(times)


def available_bytes(device: torch.device) -> int:
    """Return the free memory of the device, or of the machine for a CPU, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
