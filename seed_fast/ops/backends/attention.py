"""attention on the C++ CPU kernel, the CUDA kernels, torch's scaled_dot_product_attention, Triton and xFormers.

Every function takes the op's arguments: q [B, Lq, H, Dh], k and v [B, Lk, H, Dh], causal, scale; and returns
[B, Lq, H, Dh], contiguous.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seed_fast.ops import _dispatch, _native

HEAD_WIDTHS = range(16, 129, 8)  # widths that our kernels are written for
# From sm_80 on torch has a fused kernel for every shape and dtype, as good as ours.
SDPA_MINIMUM = (8, 0)
# xFormers: its kernels begin with Volta; bfloat16 with sm_80. The last release with a V100 is 0.0.30.
XFORMERS_MINIMUM, XFORMERS_BFLOAT16_MINIMUM = (7, 0), (8, 0)
XFORMERS_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
XFORMERS_ALIGNMENT = 16  # bytes


def cpu(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """Launch the kernel of csrc/cpu/attention.cpp."""
    return _launch_cpu(q, k, v, causal, scale, lse=None)


def _launch_cpu(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, lse: Tensor | None) -> Tensor:
    """Return the output; `lse` [B, H, Lq] float32, if given, receives the logs of the softmax sums."""
    out = torch.empty(q.shape, dtype=q.dtype)
    b, lq, h, d = q.shape
    _native.module().attention_cpu(
        (q.data_ptr(), *q.stride()), (k.data_ptr(), *k.stride()), (v.data_ptr(), *v.stride()), out.data_ptr(),
        0 if lse is None else lse.data_ptr(), _native.DTYPE_CODES[q.dtype], b, lq, k.shape[1], h, d, causal, scale,
        _native.threads(), _native.isa(),
    )  # fmt: skip
    return out


def cpu_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return grad_q, grad_k and grad_v, shaped like q, k and v.

    In float32 and float16 our forward runs again, for the output and the log of the sums that the fused backward of
    torch's CPU attention reads. In bfloat16 that backward is several times slower than matrix products, which the CPU
    has instructions for, so there the gradient is written as products.
    """
    if q.dtype == torch.bfloat16:
        return _backward_by_products(grad_out, q, k, v, causal, scale)
    lse = torch.empty(q.shape[0], q.shape[2], q.shape[1])
    out = _launch_cpu(q, k, v, causal, scale, lse)
    heads = [(x if x.stride(3) == 1 else x.contiguous()).transpose(1, 2) for x in (grad_out, q, k, v, out)]
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*heads, lse, 0.0, causal, scale=scale)
    grad_q, grad_k, grad_v = (grad.transpose(1, 2).contiguous() for grad in grads)
    return grad_q, grad_k, grad_v


def _backward_by_products(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three gradients from matrix products in q's dtype; softmax and its gradient are float32."""
    grad_BHid, q_BHid, k_BHjd, v_BHjd = (x.transpose(1, 2) for x in (grad_out, q, k, v))
    s_BHij = (q_BHid * scale) @ k_BHjd.transpose(-1, -2)
    if causal:
        later = torch.ones(s_BHij.shape[-2:], dtype=torch.bool).triu(1)
        s_BHij = s_BHij.masked_fill_(later, float("-inf"))
    p_BHij = torch.softmax(s_BHij, dim=-1, dtype=torch.float32)
    grad_v = p_BHij.to(q.dtype).transpose(-1, -2) @ grad_BHid
    grad_p_BHij = (grad_BHid @ v_BHjd.transpose(-1, -2)).float()
    grad_s_BHij = torch.ops.aten._softmax_backward_data(grad_p_BHij, p_BHij, -1, torch.float32)
    grad_s_BHij = (grad_s_BHij * scale).to(q.dtype)
    grads = (grad_s_BHij @ k_BHjd, grad_s_BHij.transpose(-1, -2) @ q_BHid, grad_v)
    grad_q, grad_k, grad_v = (grad.transpose(1, 2).contiguous() for grad in grads)
    return grad_q, grad_k, grad_v


def cpu_backward_objections(grad_out: Tensor, q: Tensor, *others: object) -> list[str]:
    """Return why `cpu_backward` cannot run on these arguments; an empty list where it can."""
    reasons = [missing] if (missing := _native.cpu_unavailable()) else cpu_objections(q)
    fused = hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward")
    if q.dtype != torch.bfloat16 and not fused:
        reasons.append("this torch has no fused CPU backward")
    return reasons + (["a tensor is empty"] if q.numel() == 0 else [])


def cpu_objections(q: Tensor, *others: object) -> list[str]:
    """Return why the C++ kernel cannot run on these arguments; an empty list where it can."""
    return _native.device_objections("cpu", q=q) + _kernel_objections(q)


def cuda(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """Launch csrc/cuda/attention.cu, or for float16 csrc/cuda/attention_sm70.cu."""
    b, lq, h, d = q.shape
    with torch.cuda.device(q.device):
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        _native.module().attention_cuda(
            (q.data_ptr(), *q.stride()), (k.data_ptr(), *k.stride()), (v.data_ptr(), *v.stride()), out.data_ptr(),
            _native.DTYPE_CODES[q.dtype], b, lq, k.shape[1], h, d, causal, scale, _native.stream(q),
        )  # fmt: skip
    return out


def cuda_objections(q: Tensor, k: Tensor, v: Tensor, *others: object) -> list[str]:
    """Return why the CUDA kernels cannot or should not run on these arguments; an empty list where they may."""
    if not q.is_cuda:
        return [f"q is on {q.device}"]
    reasons = _kernel_objections(q)
    if q.dtype == torch.bfloat16:
        reasons.append("q is bfloat16, which no GPU has that these kernels are for")
    reasons += [
        f"{name}'s last axis is not contiguous" for name, x in zip("qkv", (q, k, v), strict=True) if x.stride(3) != 1
    ]
    if torch.cuda.get_device_capability(q.device) >= SDPA_MINIMUM and _dispatch.forced() != "cuda":
        reasons.append("the GPU is sm_80 or newer, where scaled_dot_product_attention has tensor cores too")
    return reasons


def sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """Run torch's own fused kernels; their `is_causal` is aligned to the top left, as ours is."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    return out.transpose(1, 2).contiguous()


def sdpa_objections(q: Tensor, *others: object) -> list[str]:
    """Return why scaled_dot_product_attention should not run on these arguments; an empty list where it may."""
    return ["q is float64, which the reference defines"] if q.dtype == torch.float64 else []


def triton(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """Launch the kernel of kernels/triton_ops/attention.py."""
    from seed_fast.kernels.attention import attention_fwd

    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    attention_fwd(q, k, v, out, causal, scale, upcast=_native.triton_interprets())
    return out


def triton_objections(q: Tensor, *others: object) -> list[str]:
    """Return why the Triton kernel cannot run on these arguments; an empty list where it can."""
    return _native.triton_device_objections(q) + _kernel_objections(q)


def xformers(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """Run xFormers' memory_efficient_attention; it takes our layout and aligns causality to the top left too."""
    from xformers.ops import LowerTriangularMask, memory_efficient_attention

    mask = LowerTriangularMask() if causal else None
    with torch.cuda.device(q.device):
        out: Tensor = memory_efficient_attention(q, k, v, attn_bias=mask, scale=scale)
    return out.contiguous()


def xformers_objections(q: Tensor, k: Tensor, v: Tensor, *others: object) -> list[str]:
    """Return why xFormers cannot or should not run on these arguments; an empty list where it may."""
    if not q.is_cuda:
        return [f"q is on {q.device}, and xFormers' kernels are for CUDA"]
    reasons = [] if _dispatch.forced() == "xformers" else ["it runs on request alone"]
    capability = torch.cuda.get_device_capability(q.device)
    if q.dtype not in XFORMERS_DTYPES:
        reasons.append(f"q is {str(q.dtype).removeprefix('torch.')}")
    if capability < XFORMERS_MINIMUM:
        reasons.append("the GPU is older than sm_70")
    elif q.dtype == torch.bfloat16 and capability < XFORMERS_BFLOAT16_MINIMUM:
        reasons.append("q is bfloat16, and the GPU is older than sm_80")
    if 0 in q.shape:
        reasons.append("q is empty")
    if q.shape[3] not in HEAD_WIDTHS:
        reasons.append(f"the head width {q.shape[3]} is not a multiple of 8 from 16 to 128")
    for name, x in zip("qkv", (q, k, v), strict=True):
        if x.stride(3) != 1:
            reasons.append(f"{name}'s last axis is not contiguous")
        elif not _aligned(x):
            reasons.append(f"{name}'s rows are not aligned to {XFORMERS_ALIGNMENT} bytes")
    return reasons


def _aligned(x: Tensor) -> bool:
    """Return True if every row of x [B, L, H, Dh] begins at a multiple of 16 bytes."""
    offsets = [x.data_ptr(), *(x.stride(axis) * x.element_size() for axis in range(3) if x.shape[axis] > 1)]
    return all(offset % XFORMERS_ALIGNMENT == 0 for offset in offsets)


def _kernel_objections(q: Tensor) -> list[str]:
    """Return why none of our own kernels, C++, CUDA or Triton, takes q's dtype or head width."""
    reasons = _native.dtype_objections(q=q.dtype)
    if q.shape[3] not in HEAD_WIDTHS:
        reasons.append(f"the head width {q.shape[3]} is not a multiple of 8 from 16 to 128")
    return reasons
