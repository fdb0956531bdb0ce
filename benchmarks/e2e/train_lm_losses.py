"""Losses of training a language model, step by step, by seed_fast and by Hugging Face's Trainer.

`python -m benchmarks.e2e.train_lm_losses --steps 200` takes the same steps with both, without dropout, and prints one
JSON object: how far the losses are apart, and all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch

from benchmarks.e2e.train_lm import OURS, SIZES, TRAINER, provider_call
from benchmarks.providers import close


def curves(size: str, dtype: str, device: str, steps: int) -> dict[str, list[float]]:
    """Losses of the same steps, without dropout, by provider: {"seed_fast": [...], "Trainer + PEFT": [...]}."""
    losses = {}
    for name in (OURS, TRAINER):
        call = provider_call(name, size, dtype, device, steps + 1, dropout=0.0)
        call()
        losses[name] = [call() for _ in range(steps)]
        close(call)
    return losses


def summarise(size: str, dtype: str, device: str, steps: int) -> dict[str, Any]:
    """How far the losses of both are apart, relative to the Trainer's, and in float16 how far ours are from float32's.

    Args:
        size: a key of `SIZES`.
        dtype: "float32", "float16" or "bfloat16".
        device: "cpu" or "cuda".
        steps: optimizer steps to take.
    """
    losses = curves(size, dtype, device, steps)
    summary = {
        "steps": steps,
        "dtype": dtype,
        "largest_difference": _largest_difference(losses[OURS], losses[TRAINER]),
        "last": {name: values[-1] for name, values in losses.items()},
    }
    if dtype == "float16":
        in_float32 = curves(size, "float32", device, steps)[OURS]
        summary["largest_difference_from_float32"] = _largest_difference(losses[OURS], in_float32)
    return {**summary, "losses": losses}


def _largest_difference(losses: list[float], reference: list[float]) -> float:
    return max(abs(loss - other) / other for loss, other in zip(losses, reference, strict=True))


def main() -> int:
    """Print the comparison as JSON."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.e2e.train_lm_losses", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps to take with each")
    parser.add_argument("--size", choices=SIZES, default="125m", help="which of OPT's shapes to train")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="default: float32 on a CPU, float16 on a GPU"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args()
    if min(options.steps, options.threads) < 1:
        parser.error("--steps and --threads must be at least 1")
    torch.set_num_threads(options.threads)
    dtype = options.dtype or ("float32" if options.device == "cpu" else "float16")
    print(json.dumps(summarise(options.size, dtype, options.device, options.steps)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
