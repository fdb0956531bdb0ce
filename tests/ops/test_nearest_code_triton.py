"""The Triton kernels: run by the interpreter on a CPU, natively on a GPU."""

from __future__ import annotations

import pytest

from tests.ops.contract import run_triton

CHECK = """
from seed_fast.ops.nearest_code import reference
from tests.ops.exact_ids import exact_answer, margin_is_right
def check(z, codebook, margin=False):
    with backend("triton"):
        got = nearest_code(z.to(device), codebook.to(device), return_margin=margin)
    ids, gap = reference(z, codebook)
    assert torch.equal((got[0] if margin else got).cpu(), ids), (got, ids)
    if margin:
        assert all(map(margin_is_right, got[1].tolist(), exact_answer(z, codebook)[1])), (got, gap)
"""

CASES = {
    "shapes and dtypes": """
for n, k, d in [(1, 1, 1), (5, 7, 3), (70, 100, 32), (65, 129, 40), (3, 40, 256)]:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        check(draw(n, d).to(dtype), draw(k, d).to(dtype))
""",
    "margins": "check(draw(3, 8), draw(20, 8), margin=True)\ncheck(draw(2, 4), draw(1, 4), margin=True)",
    "ties": """
codebook = draw(20, 8)
check(draw(2, 8), torch.cat([codebook, codebook]))
check(draw(1, 4), torch.cat([codebook[:1, :4]] * 140), margin=True)
""",
    "one bit apart": """
codebook = draw(1, 8).expand(30, 8).contiguous()
codebook.view(torch.int32).add_(torch.randint(-1, 2, (30, 8), generator=generator, dtype=torch.int32))
check(draw(2, 8), codebook)
""",
    "magnitudes": "[check(draw(2, 8) * s, draw(20, 8) * s) for s in (1e-30, 1e15)]",
    "strides": "check(draw(8, 5).T, draw(20, 24)[:, ::3])\ncheck(draw(5, 16)[:, ::2], draw(8, 20).T)",
    "nan": """
z = draw(5, 8)
z[2, 3], z[4, 0] = math.nan, math.inf
with backend("triton"):
    ids, margin = nearest_code(z.to(device), draw(20, 8).to(device), return_margin=True)
assert (ids == -1).tolist() == [False, False, True, False, True] and margin.isnan().tolist() == (ids == -1).tolist()
broken = draw(20, 8)
broken[3] = 1e30
with backend("triton"):
    assert (nearest_code(z.to(device), broken.to(device)) == -1).all()
""",
}


@pytest.mark.parametrize("case", CASES)
def test_triton_ids_equal_the_reference(case):
    run_triton(CHECK + CASES[case])
