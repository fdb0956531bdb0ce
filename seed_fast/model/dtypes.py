"""The table of types in which models compute and weights are stored."""

from __future__ import annotations

import torch

DTYPE_BY_NAME = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
