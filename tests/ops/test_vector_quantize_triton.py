"""The Triton kernels: run by the interpreter on a CPU, natively on a GPU."""

from __future__ import annotations

import pytest

from tests.ops.contract import run_triton

CHECK = """
from seed_fast.ops.vector_quantize import reference
def close(got, true, dtype, slack=1):
    eps = torch.finfo(dtype).eps * slack
    torch.testing.assert_close(got.cpu().double(), true, rtol=eps, atol=eps * 1e-3, equal_nan=True)
def check(z, codebook, layout=lambda x: x):
    ours = [layout(x.clone().to(device)).requires_grad_() for x in (z, codebook)]
    truth = [x.double().requires_grad_() for x in (z, codebook)]
    weights = draw(*z.shape).to(z.dtype)
    with backend("triton"):
        got = vector_quantize(*ours)
        z_q, ids, commit, codebook_loss = got
        ((z_q.double() * weights.to(device)).sum() + 1.5 * commit + 0.25 * codebook_loss).backward()
    expected = reference(*truth)
    ((expected[0] * weights.double()).sum() + 1.5 * expected[2] + 0.25 * expected[3]).backward()
    assert torch.equal(ids.cpu(), expected[1])
    assert z_q.dtype == z.dtype and commit.dtype == codebook_loss.dtype == torch.float32
    close(z_q, codebook[expected[1]].to(z.dtype).double(), torch.float64)
    close(commit, expected[2], torch.float32)
    close(codebook_loss, expected[3], torch.float32)
    for mine, true in zip(ours, truth):
        assert mine.grad.dtype == mine.dtype
        close(mine.grad, true.grad, mine.dtype)
"""

CASES = {
    "shapes and dtypes": """
for n, k, d in [(1, 1, 1), (5, 7, 3), (70, 20, 32), (33, 40, 100)]:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        check(draw(n, d).to(dtype), draw(k, d).to(dtype))
""",
    "strides": "check(draw(24, 8), draw(9, 8), lambda x: x.T.contiguous().T)",
    "few entries for many rows": "check(draw(200, 8), draw(3, 8))",
    "nan": """
z, codebook = draw(6, 4).to(device).requires_grad_(), draw(9, 4).to(device).requires_grad_()
with torch.no_grad():
    z[2, 1] = math.nan
with backend("triton"):
    z_q, ids, commit, codebook_loss = vector_quantize(z, codebook)
    grad_z, grad_codebook = torch.autograd.grad(z_q.nan_to_num().sum() + commit + codebook_loss, (z, codebook))
bad = [False, False, True, False, False, False]
assert (ids == -1).tolist() == bad and z_q.isnan().any(1).tolist() == bad and grad_z.isnan().any(1).tolist() == bad
assert commit.isnan() and codebook_loss.isnan() and not grad_codebook.isnan().any()
""",
    "empty": """
z, codebook = torch.zeros(0, 8, device=device), draw(5, 8).to(device).requires_grad_()
with backend("triton"):
    z_q, ids, commit, codebook_loss = vector_quantize(z, codebook)
    (grad,) = torch.autograd.grad(codebook_loss, codebook)
assert z_q.shape == (0, 8) and ids.shape == (0,) and commit.isnan() and (grad == 0).all()
""",
    "the same every time": """
z, codebook = draw(300, 8).to(device), draw(3, 8).to(device).requires_grad_()
with backend("triton"):
    gradients = [torch.autograd.grad(vector_quantize(z, codebook)[3], codebook)[0] for _ in range(3)]
assert all(torch.equal(gradients[0], other) for other in gradients)
""",
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_definition(case):
    run_triton(CHECK + CASES[case])
