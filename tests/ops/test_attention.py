"""attention on the backends that run on a CPU: as close to float64 as plain torch, whatever the input looks like."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seed_fast.ops import attention, backend
from seed_fast.testing import check_budget
from tests.ops.attention_cases import plain, structured
from tests.ops.contract import DTYPES, backends_of_a_cpu, needs_native
from tests.ops.contract import ISAS as COMMON

ISAS = (*COMMON, "avx512bf16")
everywhere = backends_of_a_cpu("reference", "sdpa", isas=ISAS)
SHAPES = [  # B, Lq, Lk, H, Dh: the four of the model, then odd ones
    (2, 32, 32, 3, 64),
    (1, 32, 257, 2, 64),
    (1, 257, 257, 1, 88),
    (1, 1, 1, 1, 16),
    (2, 5, 7, 2, 24),
    (1, 17, 3, 1, 104),
    (1, 3, 1100, 1, 40),  # more keys than the kernel holds at a time
    (1, 530, 520, 1, 72),
    (1, 1, 33, 2, 128),
    (0, 3, 4, 2, 16),
    (2, 0, 4, 2, 16),
]


def random_qkv(b, lq, lk, h, d, dtype=torch.float32, scale=1.0, seed=0):
    """Slices of fused projections, as the model has them: [B, Lq, H, Dh] and two of [B, Lk, H, Dh]."""
    generator = torch.Generator().manual_seed(seed + 1009 * lq + 31 * lk + d)
    draw = lambda *shape: (torch.randn(*shape, generator=generator) * scale).to(dtype)  # noqa: E731
    q = draw(b, lq, 3, h, d)[:, :, 1]
    return (q, *draw(b, lk, 2, h, d).unbind(2))


def check(q, k, v, causal=False, scale=None, factor=2):
    """The error of the chosen backend against float64 is at most twice that of plain torch in the inputs' dtype."""
    exact = plain(q.double(), k.double(), v.double(), causal, scale)
    check_budget(attention(q, k, v, causal=causal, scale=scale), exact, plain(q, k, v, causal, scale), factor)


def factor_of(backend_name):
    """Torch's own kernel is held to what shows wrong strides and scales; how it rounds is its own."""
    return 8 if backend_name == "sdpa" else 2


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_within_twice_that_of_plain_torch(everywhere, poisoned, shape, dtype, causal):
    check(*random_qkv(*shape, dtype), causal)


@needs_native
@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(1, 3), st.integers(2, 16),
    st.sampled_from(DTYPES), st.booleans(), st.sampled_from(ISAS),
)  # fmt: skip
def test_any_shape_on_any_instruction_set(lq, lk, h, eighths, dtype, causal, isa):
    qkv = random_qkv(16, lq, lk, h, 8 * eighths, dtype)  # many rows: the largest error of few is a matter of luck
    expected = plain(*(x.double() for x in qkv), causal)
    with pytest.MonkeyPatch.context() as patch, backend("cpu"):
        patch.setenv("SEED_FAST_CPU_ISA", isa)
        got, alone = attention(*qkv, causal=causal), attention(*(x[:1] for x in qkv), causal=causal)
    check_budget(got, expected, plain(*qkv, causal))
    assert torch.equal(alone, got[:1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_are_free(everywhere, dtype):
    q, k, v = random_qkv(2, 9, 13, 3, 24, dtype)
    wide = torch.zeros(2, 13, 3, 48, dtype=dtype)
    wide[..., ::2] = k
    for qkv in (
        (q.contiguous(), k, v.contiguous()),
        [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)],
        [x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0) for x in (q, k, v)],
        (q, wide[..., ::2], v),
        (q, k[:, :1, :1].expand(2, 13, 3, 24), v),
    ):
        check(*qkv, factor=factor_of(everywhere))


def test_causality_is_aligned_to_the_top_left(everywhere):
    q, k, v = random_qkv(1, 40, 70, 1, 16)
    got = attention(q, k, v, causal=True)
    assert torch.equal(got[:, 0], v[:, 0])
    for i in (7, 20, 39):
        seen = q[:, i : i + 1], k[:, : i + 1], v[:, : i + 1]
        check_budget(got[:, i : i + 1], plain(*(x.double() for x in seen)), plain(*seen), factor_of(everywhere))


@pytest.mark.parametrize("scale", [0.0, 1.0, -0.3])
def test_scale(everywhere, scale):
    check(*random_qkv(1, 9, 40, 2, 32), scale=scale, factor=factor_of(everywhere))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lq", "lk"), [(32, 32), (32, 257), (40, 1100)])
def test_structured_scores_keep_to_the_budget(everywhere, lq, lk, dtype):
    if everywhere == "sdpa":
        pytest.skip("torch's own kernel: on AVX2 it loses small weights beside a large one, by more than the budget")
    for name, q, k, v, scale in structured(lq, lk, dtype):
        try:
            check(q, k, v, scale=scale)
        except AssertionError as error:
            raise AssertionError(name) from error


@pytest.mark.parametrize("magnitude", [1e-42, 1e-20, 1e-3, 30.0, 1e4, 1e18])
def test_tiny_and_huge_magnitudes(everywhere, magnitude):
    check(*random_qkv(1, 9, 40, 2, 32, scale=magnitude))


def test_weights_that_underflow_next_to_a_dominant_one(everywhere):
    q, k, v = torch.ones(1, 1, 1, 16), torch.zeros(1, 60, 1, 16), random_qkv(1, 1, 60, 1, 16)[2]
    k[0, 7] = 60.0
    assert torch.equal(attention(q, k, v)[0, 0], v[0, 7])


@pytest.mark.parametrize("lk", [40, 1100])
def test_nan_and_infinities_spread_as_softmax_says(everywhere, lk):
    q, k, v = random_qkv(1, 5, lk, 1, 16)
    for value in (math.nan, math.inf, -math.inf):
        broken = q.clone()
        broken[0, 2, 0, 3] = value
        rows = attention(broken, k, v)[0].isnan().flatten(1).all(1)
        assert rows.tolist() == [False, False, True, False, False]
    broken = v.clone()
    broken[0, 30, 0, 3] = math.nan
    assert attention(q, k, broken).isnan().nonzero()[:, 3].unique().tolist() == [3]


@needs_native
def test_a_key_whose_score_is_minus_infinity_gets_no_weight():
    # Whole chunks of such keys, before and after the finite one.
    for at in (3, 600, 1099):
        q, k, v = torch.ones(1, 2, 1, 16), torch.full((1, 1100, 1, 16), -math.inf), torch.randn(1, 1100, 1, 16)
        k[0, at] = 1.0
        with backend("cpu"):
            assert torch.equal(attention(q, k, v)[0], v[0, at].expand(2, 1, 16))
            assert attention(q, torch.full_like(k, -math.inf), v).isnan().all()


@needs_native
def test_keys_that_causality_hides_never_matter():
    q, k, v = random_qkv(1, 70, 70, 1, 32)
    with backend("cpu"):
        expected = attention(q, k, v, causal=True)
        k[:, 50:] = math.nan
        assert torch.equal(attention(q, k, v, causal=True)[:, :50], expected[:, :50])
