"""vector_quantize: values and gradients against the definition in torch, on every backend a CPU has."""

from __future__ import annotations

import math

import pytest
import torch

from seed_fast.ops import _native, backend, pack_codebook, vector_quantize
from seed_fast.ops.vector_quantize import reference
from seed_fast.testing import check_budget
from tests.ops.contract import DTYPES


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def everywhere(request):
    """Runs every test on the fallback and on the C++ kernels."""
    if request.param == "cpu" and _native.cpu_unavailable():
        pytest.skip(_native.cpu_unavailable())
    with backend(request.param):
        yield


def random_pair(n, k, d, dtype=torch.float32, grad=True):
    generator = torch.Generator().manual_seed(1009 * n + 31 * k + d)
    draw = lambda rows: torch.randn(rows, d, generator=generator).to(dtype)  # noqa: E731
    return draw(n).requires_grad_(grad), draw(k).requires_grad_(grad)


def loss_of(outputs, weights):
    z_q, _, commit, codebook_loss = outputs
    return (z_q.double() * weights).sum() + 1.5 * commit.double() + 0.25 * codebook_loss.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (33, 20, 7), (300, 64, 32), (2000, 513, 33)])
def test_values_and_gradients_are_those_of_the_definition(n, k, d, dtype):
    weights = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, truth = (
        random_pair(n, k, d, dtype),
        [x.detach().double().requires_grad_() for x in random_pair(n, k, d, dtype)],
    )
    got, expected = vector_quantize(*ours), reference(*truth)
    assert torch.equal(got[1], expected[1])
    assert torch.equal(got[0], ours[1][got[1]].detach()), "z_q is the chosen entry itself"
    assert [x.dtype for x in got] == [dtype, torch.int64, torch.float32, torch.float32]
    for mine, true in zip(got[2:], expected[2:], strict=True):
        check_budget(mine, true, true.float())  # as near as float32 holds it, whatever the dtype of z

    loss_of(got, weights.to(dtype)).backward()
    loss_of(expected, weights.to(dtype).double()).backward()
    rounding = torch.finfo(dtype).eps  # a gradient is rounded once: each element to a unit in its last place
    for mine, true in zip(ours, truth, strict=True):
        assert mine.grad.dtype == dtype
        torch.testing.assert_close(mine.grad.double(), true.grad, rtol=rounding, atol=rounding * 1e-3)


def test_matches_the_official_layer():
    z, codebook = random_pair(96, 64, 8)
    z_q, ids, commit, codebook_loss = vector_quantize(z.reshape(3, 32, 8), codebook)
    distances = z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.T
    chosen = codebook[distances.argmin(1)]
    assert torch.equal(ids.flatten(), distances.argmin(1))
    check_budget(z_q.reshape(96, 8), chosen.double(), z + (chosen - z))

    def official(z, codebook):
        chosen = codebook[ids.flatten()]
        loss = (chosen.detach() - z).square().mean() + 0.25 * (chosen - z.detach()).square().mean()
        return loss, *torch.autograd.grad(loss, (z, codebook))

    loss = commit + 0.25 * codebook_loss
    exactly = official(*(x.detach().double().requires_grad_() for x in (z, codebook)))
    found = (loss, *torch.autograd.grad(loss, (z, codebook)))
    for each in zip(found, exactly, official(z, codebook), strict=True):
        check_budget(*each, factor=3)


def test_gradcheck_of_both_terms():
    z, codebook = random_pair(12, 5, 3, torch.float64)
    with backend("reference"):  # float64 has no kernel
        assert torch.autograd.gradcheck(lambda x: vector_quantize(x, codebook.detach())[2], z)
        assert torch.autograd.gradcheck(lambda x: vector_quantize(z.detach(), x)[3], codebook)


def test_the_codebook_gradient_is_the_same_every_time_and_for_any_number_of_threads():
    z, codebook = random_pair(5000, 3, 16)
    before, gradients = torch.get_num_threads(), []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        gradients.append(torch.autograd.grad(vector_quantize(z, codebook)[3], codebook)[0])
    torch.set_num_threads(before)
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


def test_strided_inputs_and_gradients():
    z, codebook = random_pair(24, 9, 8, grad=False)
    weights = torch.randn(8, 24, generator=torch.Generator().manual_seed(1))
    outcomes = []
    for layout in (lambda x: x.clone(), lambda x: x.T.contiguous().T):
        pair = [layout(x).requires_grad_() for x in (z, codebook)]
        z_q, ids, commit, codebook_loss = vector_quantize(*pair)
        # The gradient of z_q arrives transposed, then, from a bare sum, with stride 0.
        loss = (z_q.T * weights).sum() + z_q.sum() + commit + codebook_loss
        outcomes.append(
            (ids, *torch.autograd.grad(loss, pair), *torch.autograd.grad(vector_quantize(*pair)[0].sum(), pair[:1]))
        )
    for one, other in zip(*outcomes, strict=True):
        assert torch.equal(one, other)


def test_nan_rows_spoil_the_loss_but_not_the_other_rows():
    z, codebook = random_pair(6, 9, 4)
    with torch.no_grad():
        z[2, 1] = math.nan
    z_q, ids, commit, codebook_loss = vector_quantize(z, codebook)
    assert (ids == -1).nonzero().flatten().tolist() == [2]
    assert z_q.isnan().any(1).nonzero().flatten().tolist() == [2]
    assert commit.isnan()
    assert codebook_loss.isnan()
    (grad_z,) = torch.autograd.grad(z_q.nan_to_num().sum() + commit, z)
    assert grad_z.isnan().any(1).nonzero().flatten().tolist() == [2]


def test_a_packed_codebook_gives_the_same_and_empty_input_is_allowed():
    z, codebook = random_pair(40, 30, 8, grad=False)
    for one, other in zip(vector_quantize(z, codebook), vector_quantize(z, pack_codebook(codebook)), strict=True):
        assert torch.equal(one, other)
    z_q, ids, commit, _ = vector_quantize(z[:0], codebook)
    assert z_q.shape == (0, 8)
    assert ids.shape == (0,)
    assert commit.isnan(), "the mean of nothing, as torch has it"


def test_a_row_whose_norm_overflows_is_named():
    with pytest.raises(ValueError, match="squared norm of every row of z"):
        vector_quantize(torch.full((1, 8), 1e30), torch.zeros(20, 8))
