"""Attention within samples: equal to attention under the block-diagonal causal mask, and blind to other samples."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seed_fast.lm.packed_attention import Packed, packed_attention
from seed_fast.testing import error_ratio

SEGMENTS = {
    "packed": [[1, 1, 1, 2, 2, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]],
    "padded": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    "one": [[1, 1, 1, 1]],
    "single tokens": [[1, 2, 3, 3]],
    "holes": [[0, 1, 1, 0], [0, 0, 0, 0], [5, 5, 2, 2]],
}


def masked(q, k, v, segments, scale):
    """[B, T] attention by the mask [B, T, T], in float64."""
    B, T = segments.shape
    mask = (segments[:, :, None] == segments[:, None, :]).tril() & (segments > 0)[:, :, None]
    full = []
    for x in (q, k, v):
        rows = x.new_zeros(B * T, *x.shape[1:])
        rows[segments.flatten() > 0] = x
        x = rows.view(B, T, *x.shape[1:]).transpose(1, 2).double()
        full.append(x.repeat_interleave(q.shape[1] // x.shape[1], dim=1))
    mask = mask | ~(segments > 0)[:, :, None]  # padding looks at anything: it is dropped
    out = F.scaled_dot_product_attention(*full, attn_mask=mask[:, None], scale=scale)
    return out.transpose(1, 2).reshape(B * T, *q.shape[1:])[segments.flatten() > 0]


@pytest.mark.parametrize("name", SEGMENTS)
@pytest.mark.parametrize("groups", [1, 2])
def test_it_equals_the_block_diagonal_mask(name, groups):
    segments = torch.tensor(SEGMENTS[name])
    count = int((segments > 0).sum())
    generator = torch.Generator().manual_seed(0)
    shapes = [(count, 4, 8), (count, 4 // groups, 8), (count, 4 // groups, 8)]
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    check_all(inputs, segments)


def test_bfloat16_on_a_cpu_is_as_near_to_the_truth_as_torch():
    segments = torch.tensor(SEGMENTS["packed"])
    count = int((segments > 0).sum())
    generator = torch.Generator().manual_seed(0)
    check_all([torch.randn(count, 4, 16, generator=generator).bfloat16().requires_grad_() for _ in range(3)], segments)


def check_all(inputs, segments):
    """Output and gradients of q, k, v [count, heads, width] are within the budget of torch, sample by sample."""
    weight = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def both(run, inputs):
        out = run(inputs)
        return [out, *torch.autograd.grad((out * weight).sum(), inputs)]

    ours = both(lambda qkv: packed_attention(*qkv, Packed.of_segments(segments), scale=0.3), inputs)
    plain = both(lambda qkv: masked_in_their_type(qkv, segments), inputs)
    exact = both(lambda qkv: masked(*qkv, segments, 0.3), [x.detach().double().requires_grad_() for x in inputs])
    for found, truth, torchs, factor in zip(ours, exact, plain, (2, 3, 3, 3), strict=True):
        assert error_ratio(found, torchs, truth) <= factor


def masked_in_their_type(inputs, segments):
    """SDPA sample by sample."""
    rows, kept = segments.flatten() + 100 * torch.arange(len(segments)).repeat_interleave(segments.shape[1]), []
    rows = rows[segments.flatten() > 0]
    for sample in rows.unique_consecutive():
        q, k, v = (x[rows == sample].transpose(0, 1) for x in inputs)
        k, v = (x.repeat_interleave(len(q) // len(x), dim=0) for x in (k, v))
        kept.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3).transpose(0, 1))
    return torch.cat(kept)


def test_kept_tokens_are_in_order_and_layouts_hold_each_once():
    segments = torch.tensor(SEGMENTS["packed"])
    packed = Packed.of_segments(segments)
    assert packed.kept.tolist() == segments.flatten().nonzero().squeeze(1).tolist()
    assert len(packed.layouts) == 3  # of lengths 1, 3 to 4, and 10
    tokens = torch.cat([layout.tokens for layout in packed.layouts])
    assert sorted(tokens.tolist()) == list(range(len(packed.kept)))
    for layout in packed.layouts:
        assert layout.samples * layout.length <= 2 * len(layout.places)


def test_a_batch_of_padding_alone_is_refused():
    with pytest.raises(ValueError, match="at least one token that is no padding"):
        Packed.of_segments(torch.zeros(2, 3, dtype=torch.int64))
