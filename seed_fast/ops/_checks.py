"""The dtypes that ops take, and the checks of their tensors' types."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_dtype(op: str, name: str, dtype: torch.dtype) -> None:
    """Refuse a dtype that ops don't take.

    Args:
        op: name of the op, for the message.
        name: name of the argument, for the message.
        dtype: the dtype of the argument.

    Raises:
        TypeError: it is none of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise TypeError(f"{op}: {name} must be float32, float16, bfloat16 or float64, got {dtype}")


def check_tensors(op: str, **tensors: Tensor) -> None:
    """Refuse arguments, given by their names, that are no tensors of one of `DTYPES`.

    Raises:
        TypeError: an argument is no tensor, or of another dtype.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, got {type(tensor).__name__}")
        check_dtype(op, name, tensor.dtype)
