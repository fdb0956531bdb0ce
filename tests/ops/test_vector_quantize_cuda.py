"""The CUDA kernels of vector_quantize on a GPU: values and gradients.

Without a GPU the kernels themselves run in csrc/tests/vector_quantize_cuda_test.cpp, which executes them on the host.
"""

from __future__ import annotations

import math

import pytest
import torch

from seed_fast.ops import _native, backend, pack_codebook, vector_quantize
from seed_fast.ops.vector_quantize import reference
from seed_fast.testing import check_budget
from tests.ops.contract import DTYPES, on_gpu


def random_pair(n, k, d, dtype=torch.float32, grad=True):
    generator = torch.Generator().manual_seed(1009 * n + 31 * k + d)
    return [torch.randn(rows, d, generator=generator).to("cuda", dtype).requires_grad_(grad) for rows in (n, k)]


def loss_of(outputs, weights):
    z_q, _, commit, codebook_loss = outputs
    return (z_q.double() * weights).sum() + 1.5 * commit.double() + 0.25 * codebook_loss.double()


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (33, 20, 7), (300, 64, 32), (2000, 513, 33), (8192, 8192, 32)])
def test_values_and_gradients_are_those_of_the_definition(cuda, n, k, d, dtype):
    weights = torch.randn(n, d, generator=torch.Generator().manual_seed(0)).to("cuda", dtype)
    ours = random_pair(n, k, d, dtype)
    truth = [x.detach().cpu().double().requires_grad_() for x in ours]
    got, expected = vector_quantize(*ours), reference(*truth)
    assert torch.equal(got[1].cpu(), expected[1])
    assert torch.equal(got[0], ours[1][got[1]].detach()), "z_q is the chosen entry itself"
    assert [x.dtype for x in got] == [dtype, torch.int64, torch.float32, torch.float32]
    for mine, true in zip(got[2:], expected[2:], strict=True):
        check_budget(mine.cpu(), true, true.float())
    loss_of(got, weights.double()).backward()
    loss_of(expected, weights.cpu().double()).backward()
    rounding = torch.finfo(dtype).eps  # a gradient is rounded once: each element to a unit in its last place
    for mine, true in zip(ours, truth, strict=True):
        assert mine.grad.dtype == dtype
        torch.testing.assert_close(mine.grad.cpu().double(), true.grad, rtol=rounding, atol=rounding * 1e-3)


@on_gpu
def test_gradients_are_the_same_every_time_and_those_of_the_cpu_kernel(cuda):
    z, codebook = random_pair(5000, 3, 16)
    gradients = [torch.autograd.grad(vector_quantize(z, codebook)[3], codebook)[0] for _ in range(4)]
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])
    if not _native.cpu_unavailable():
        pair = [x.detach().cpu().requires_grad_() for x in (z, codebook)]
        with backend("cpu"):
            assert torch.equal(torch.autograd.grad(vector_quantize(*pair)[3], pair[1])[0], gradients[0].cpu())


@on_gpu
def test_strided_inputs_and_gradients(cuda):
    z, codebook = random_pair(24, 9, 8, grad=False)
    weights = torch.randn(8, 24, generator=torch.Generator().manual_seed(1)).cuda()
    outcomes = []
    for layout in (lambda x: x.clone(), lambda x: x.T.contiguous().T):
        pair = [layout(x).requires_grad_() for x in (z, codebook)]
        z_q, ids, commit, codebook_loss = vector_quantize(*pair)
        loss = (z_q.T * weights).sum() + commit + codebook_loss  # the gradient of z_q arrives transposed
        outcomes.append((ids, *torch.autograd.grad(loss, pair)))
        outcomes[-1] += torch.autograd.grad(vector_quantize(*pair)[0].sum(), pair[:1])  # and here with stride 0
    for one, other in zip(*outcomes, strict=True):
        assert torch.equal(one, other)


@on_gpu
def test_nan_rows_spoil_the_loss_but_not_the_other_rows(cuda):
    z, codebook = random_pair(6, 9, 4)
    with torch.no_grad():
        z[2, 1] = math.nan
    z_q, ids, commit, codebook_loss = vector_quantize(z, codebook)
    assert (ids == -1).nonzero().flatten().tolist() == [2]
    assert z_q.isnan().any(1).nonzero().flatten().tolist() == [2]
    assert commit.isnan()
    assert codebook_loss.isnan()
    grad_z, grad_codebook = torch.autograd.grad(z_q.nan_to_num().sum() + commit + codebook_loss, (z, codebook))
    assert grad_z.isnan().any(1).nonzero().flatten().tolist() == [2]
    assert not grad_codebook.isnan().any()


@on_gpu
def test_a_captured_training_step_replays_on_new_input(cuda):
    z, codebook = random_pair(64, 300, 32)

    def step():
        _, _, commit, codebook_loss = vector_quantize(z, codebook)
        return torch.autograd.grad(commit + codebook_loss, (z, codebook))

    step()  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        z.copy_(z.flip(0) + 0.25)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


@on_gpu
def test_a_packed_codebook_gives_the_same_and_empty_input_is_allowed(cuda):
    z, codebook = random_pair(40, 30, 8, grad=False)
    for one, other in zip(vector_quantize(z, codebook), vector_quantize(z, pack_codebook(codebook)), strict=True):
        assert torch.equal(one, other)
    z_q, ids, commit, _ = vector_quantize(z[:0], codebook)
    assert z_q.shape == (0, 8)
    assert ids.shape == (0,)
    assert commit.isnan(), "the mean of nothing, as torch has it"
