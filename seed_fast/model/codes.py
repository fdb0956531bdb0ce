"""Convert codes to int64 tensors from what callers hold: tensors, arrays or lists of any integer type."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

_INTEGERS = "iu"  # kinds of numpy types


def as_codes(codes: Any, caller: str) -> Tensor:
    """Convert codes to an int64 tensor.

    Token stores and `.npz` parts hold codes as uint16, for which torch has hardly any operations.

    Args:
        codes: a tensor, an array (in any byte order) or nested lists of integers.
        caller: name of the function that an error message begins with.

    Returns:
        The codes as int64, with the shape they have; a tensor stays on its device.

    Raises:
        TypeError: the codes aren't integers.
        ValueError: lists of different lengths, or a number that int64 can't hold.
    """
    if not isinstance(codes, Tensor):
        if isinstance(codes, (list, tuple)) and any(isinstance(row, Tensor) for row in codes):
            return torch.stack([as_codes(row, caller) for row in codes])
        try:
            array = np.asarray(codes)
        except ValueError as error:
            raise ValueError(f"{caller}: codes must be [B, N], got rows of different lengths") from error
        if array.dtype.kind not in _INTEGERS and array.size:
            raise TypeError(f"{caller}: codes must be integers, got {array.dtype}")
        if array.dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise ValueError(f"{caller}: a code must be below 2**63, got {int(array.max())}")
        return torch.from_numpy(array.astype(np.int64))
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"{caller}: codes must be integers, got {codes.dtype}")
    return codes.to(torch.int64)
