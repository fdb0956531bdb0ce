"""attention on the C++ CPU kernel, torch's scaled_dot_product_attention and the Triton kernel.

Every function takes the op's arguments: q [B, Lq, H, Dh], k and v [B, Lk, H, Dh], causal, scale; and returns
[B, Lq, H, Dh], contiguous.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seed_fast.ops import _native

HEAD_WIDTHS = range(16, 129, 8)  # what our kernels are written for
# sm_80 is where Triton has tensor cores and where its generated code is right.
TRITON_MINIMUM = (8, 0)


def cpu(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """csrc/cpu/attention.cpp."""
    out = torch.empty(q.shape, dtype=q.dtype)
    b, lq, h, d = q.shape
    _native.module().attention_cpu(
        (q.data_ptr(), *q.stride()), (k.data_ptr(), *k.stride()), (v.data_ptr(), *v.stride()), out.data_ptr(),
        _native.DTYPE_CODES[q.dtype], b, lq, k.shape[1], h, d, causal, scale, _native.threads(), _native.isa(),
    )  # fmt: skip
    return out


def cpu_objections(q: Tensor, *others: object) -> list[str]:
    """Why the C++ kernel cannot run on these arguments."""
    return ([] if q.device.type == "cpu" else [f"q is on {q.device}"]) + _kernel_objections(q)


def sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """torch's own fused kernels; `is_causal` is aligned to the top left there too."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    return out.transpose(1, 2).contiguous()


def sdpa_objections(q: Tensor, *others: object) -> list[str]:
    """Why scaled_dot_product_attention is not to run on these arguments."""
    return ["q is float64, which the reference defines"] if q.dtype == torch.float64 else []


def triton(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """kernels/triton_ops/attention.py."""
    from seed_fast.kernels.attention import attention_fwd

    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    attention_fwd(q, k, v, out, causal, scale, upcast=_native.triton_interprets())
    return out


def triton_objections(q: Tensor, *others: object) -> list[str]:
    """Why the Triton kernel cannot run on these arguments."""
    reasons = _native.triton_device_objections(q) + _kernel_objections(q)
    if q.is_cuda and torch.cuda.get_device_capability(q.device) < TRITON_MINIMUM:
        reasons.append("the GPU is older than sm_80")
    return reasons


def _kernel_objections(q: Tensor) -> list[str]:
    reasons = []
    if q.dtype not in _native.DTYPE_CODES:
        reasons.append(f"q is {str(q.dtype).removeprefix('torch.')}")
    if q.shape[3] not in HEAD_WIDTHS:
        reasons.append(f"the head width {q.shape[3]} is not a multiple of 8 from 16 to 128")
    return reasons
