"""nearest_code on the backends that run on a CPU: ids equal to the float64 argmin, whatever the input looks like."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seed_fast.ops import backend, nearest_code, pack_codebook
from seed_fast.ops.nearest_code import reference
from seed_fast.testing import check_budget
from tests.ops.contract import ISAS, backends_of_a_cpu, needs_native
from tests.ops.exact_ids import exact_answer, margin_is_right

everywhere = backends_of_a_cpu("reference", isas=(*ISAS, "avx512bf16"))


def float64_argmin(z, codebook):
    """Independent of `reference`: no GEMM, so that equal entries get equal scores."""
    z, codebook = z.double(), codebook.double()
    return torch.stack([(codebook.square() - 2 * row * codebook).sum(1).argmin() for row in z])


def random_pair(n, k, d, dtype=torch.float32, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed + 1009 * n + 31 * k + d)
    draw = lambda rows: (torch.randn(rows, d, generator=generator) * scale).to(dtype)  # noqa: E731
    return draw(n), draw(k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("n", "k", "d"),
    [(1, 1, 1), (3, 2, 5), (32, 8192, 32), (13, 129, 32), (97, 127, 31), (200, 128, 33), (385, 200, 8), (5, 513, 256)],
)
def test_ids_equal_the_float64_argmin(everywhere, n, k, d, dtype):
    z, codebook = random_pair(n, k, d, dtype)
    assert torch.equal(nearest_code(z, codebook), float64_argmin(z, codebook))
    assert torch.equal(nearest_code(z, pack_codebook(codebook)), float64_argmin(z, codebook))


@pytest.mark.parametrize("n", [32, 600])
def test_margin_is_the_gap_to_the_second_best(everywhere, n):
    z, codebook = random_pair(n, 300, 32)
    _, margin = nearest_code(z, codebook, return_margin=True)
    rows = slice(None, None, 40)  # Python's integers take their time
    _, gaps = exact_answer(z[rows], codebook)
    assert all(map(margin_is_right, margin[rows].tolist(), gaps))
    best = torch.cdist(z.double(), codebook.double()).square().topk(2, largest=False).values
    check_budget(margin, best[:, 1] - best[:, 0], (best[:, 1] - best[:, 0]).float())


def test_margin_of_a_single_entry_is_infinite_and_of_a_repeated_one_is_zero(everywhere):
    z, codebook = random_pair(4, 1, 8)
    assert nearest_code(z, codebook, return_margin=True)[1].isinf().all()
    assert (nearest_code(z, codebook.repeat(3, 1), return_margin=True)[1] == 0).all()


def test_ties_go_to_the_lowest_index(everywhere):
    z, codebook = random_pair(100, 64, 32)
    ids = nearest_code(z, torch.cat([codebook, codebook, codebook]))
    assert torch.equal(ids, float64_argmin(z, codebook))
    assert (nearest_code(z, codebook[:1].expand(500, 32)) == 0).all()
    assert nearest_code(torch.zeros(3, 2), torch.tensor([[1.0, 0], [0, -1.0], [-0.0, 1.0]])).eq(0).all()


def test_a_codebook_that_differs_in_the_last_bit_is_still_exact(everywhere):
    z, codebook = random_pair(40, 1, 32)
    bits = codebook.expand(300, 32).contiguous().view(torch.int32)
    bits += torch.randint(-1, 2, bits.shape, generator=torch.Generator().manual_seed(7), dtype=torch.int32)
    collapsed = bits.view(torch.float32)
    assert torch.equal(nearest_code(z, collapsed), float64_argmin(z, collapsed))


def test_tight_clusters_far_apart_are_still_exact(everywhere):
    # No centre helps here, and bfloat16 cannot tell the members of a cluster apart.
    z, noise = random_pair(150, 400, 32)
    codebook = torch.where(torch.arange(400)[:, None] % 2 == 0, 100.0, -100.0) + noise * 1e-3
    assert torch.equal(nearest_code(z, codebook), float64_argmin(z, codebook))


@needs_native
def test_what_float64_cannot_tell_apart_is_decided_exactly():
    # One permuted entry: the same score in exact arithmetic, often not in float64. One bit more must still be seen.
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        entry = torch.randn(33, generator=generator)
        z = torch.full((1, 33), float(torch.randn((), generator=generator)))
        permuted = torch.stack([entry[torch.randperm(33, generator=generator)] for _ in range(20)])
        permuted[11, 0] += permuted[11, 0].abs() * 2**-23
        value = Fraction(z[0, 0].item())
        scores = [sum(Fraction(e) ** 2 - 2 * value * Fraction(e) for e in row) for row in permuted.tolist()]
        with backend("cpu"):
            assert nearest_code(z, permuted).item() == scores.index(min(scores))


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-20, 1e10, 1e18])
def test_tiny_and_huge_magnitudes_are_exact(everywhere, scale):
    z, codebook = random_pair(50, 200, 16, scale=scale)
    z, codebook = z.clamp(-3 * scale, 3 * scale), codebook.clamp(-3 * scale, 3 * scale)
    assert torch.equal(nearest_code(z, codebook), float64_argmin(z, codebook))


def test_one_huge_entry_does_not_blur_the_others(everywhere):
    z, codebook = random_pair(50, 400, 32)
    codebook[17] = 1e15
    assert torch.equal(nearest_code(z, codebook), float64_argmin(z, codebook))


@pytest.mark.parametrize("n", [3, 500])
def test_a_row_with_nan_gets_no_id_and_leaves_the_others_alone(everywhere, n):
    z, codebook = random_pair(n, 100, 32)
    expected = float64_argmin(z, codebook)
    z[1, 5] = math.nan
    ids, margin = nearest_code(z, codebook, return_margin=True)
    expected[1] = -1
    assert torch.equal(ids, expected)
    assert margin.isnan().nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize("value", [math.inf, 3e19])
def test_a_squared_norm_beyond_float32_is_an_error_that_names_the_row(everywhere, value):
    z, codebook = random_pair(40, 60, 32)
    z[7, 3] = value
    with pytest.raises(ValueError, match="row of z 7 is not"):
        nearest_code(z, codebook)
    with pytest.raises(ValueError, match="codebook entry 7 is not"):
        nearest_code(codebook, z)
    with pytest.raises(ValueError, match="codebook entry 7 is not"):
        pack_codebook(z)


def test_nan_in_the_codebook_is_an_error(everywhere):
    z, codebook = random_pair(4, 60, 32)
    codebook[9, 0] = math.nan
    with pytest.raises(ValueError, match="codebook entry 9"):
        nearest_code(z, codebook)


def test_strides_shapes_and_empty_inputs(everywhere):
    z, codebook = random_pair(24, 70, 16)
    expected = float64_argmin(z, codebook)
    assert torch.equal(nearest_code(z.reshape(2, 3, 4, 16), codebook), expected.reshape(2, 3, 4))
    wide = torch.full((24, 40), 9.0)
    wide[:, 3:35:2] = z
    assert torch.equal(nearest_code(wide[:, 3:35:2], codebook.T.contiguous().T), expected)
    assert torch.equal(nearest_code(z.reshape(4, 6, 16).transpose(0, 1), codebook), expected.reshape(4, 6).T)
    assert nearest_code(z[:0], codebook).shape == (0,)
    assert nearest_code(z[0], codebook).shape == ()
    assert torch.equal(nearest_code(z, codebook.bfloat16().float()), nearest_code(z, codebook.bfloat16()))


def test_a_packed_codebook_is_a_snapshot(everywhere):
    z, codebook = random_pair(30, 70, 16)
    packed, expected = pack_codebook(codebook), nearest_code(z, codebook)
    codebook.zero_()
    assert torch.equal(nearest_code(z, packed), expected)


def test_ids_carry_no_gradient_even_where_the_inputs_do():
    z, codebook = random_pair(6, 20, 8)
    ids, margin = nearest_code(z.clone().requires_grad_(), codebook.clone().requires_grad_(), return_margin=True)
    assert not ids.requires_grad
    assert not margin.requires_grad


def test_float64_goes_to_the_reference():
    z, codebook = random_pair(6, 20, 8)
    assert torch.equal(nearest_code(z.double(), codebook.double()), nearest_code(z, codebook))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 40), st.integers(0, 10**6), st.sampled_from([1, 4, 64]))
def test_any_shape_agrees_with_the_reference(n, k, d, seed, levels):
    # Few levels make many exact ties.
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(-levels, levels + 1, (n, d), generator=generator) / 4
    codebook = torch.randint(-levels, levels + 1, (k, d), generator=generator) / 4
    ids, margin = nearest_code(z, codebook, return_margin=True)
    expected_ids, expected_margin = reference(z, codebook)
    assert torch.equal(ids, expected_ids)
    assert torch.equal(margin, expected_margin), "multiples of 1/16: exact"


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(threads):
    z, codebook = random_pair(700, 1000, 32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(nearest_code(z, codebook), float64_argmin(z, codebook))
    finally:
        torch.set_num_threads(before)


@needs_native
def test_extra_memory_does_not_grow_with_rows_times_codes():
    import resource

    z, codebook = random_pair(65536, 8192, 4)
    with backend("cpu"):
        nearest_code(z[:1000], codebook)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        nearest_code(z, codebook)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 16 * 2**20, f"{grown / 2**20:.0f} MiB more; the distance matrix would be 2048 MiB"
