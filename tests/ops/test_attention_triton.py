"""The Triton kernel: run by the interpreter on a CPU, natively on a GPU."""

from __future__ import annotations

import pytest

from tests.ops.contract import run_triton

CHECK = """
from tests.ops.attention_cases import plain, structured
def run(*qkv, **options):
    with backend("triton"):
        return attention(*(x.to(device) for x in qkv), **options).cpu()
def check(q, k, v, **options):
    got = run(q, k, v, **options)
    causal, scale = options.get("causal", False), options.get("scale")
    check_budget(got, plain(*(x.double() for x in (q, k, v)), causal, scale), plain(q, k, v, causal, scale))
"""

CASES = {
    "shapes and dtypes": """
for lq, lk, d in [(32, 32, 64), (32, 257, 64), (33, 70, 88), (1, 1, 16), (5, 3, 24), (3, 65, 128)]:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        q, (k, v) = draw(1, lq, 2, d).to(dtype), draw(1, lk, 2, 2, d).to(dtype).unbind(2)
        check(q, k, v)
        check(q, k, v, causal=True)
""",
    "batches, heads and strides": """
q, k, v = draw(2, 9, 3, 3, 16).unbind(2)
check(q, k, v)
check(*(x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0) for x in (q, k, v)), causal=True)
check(q[:0], k[:0], v[:0])
check(q[:, :0], k, v)
""",
    "magnitudes": "[check(*(draw(1, 5, 1, 16) * scale for _ in range(3))) for scale in (1e-20, 1e-3, 5.0)]",
    "structured scores": """
for dtype in (torch.float32, torch.float16):
    for name, q, k, v, scale in structured(32, 70, dtype):
        print(name, dtype, flush=True)
        check(q[:, :, :2], k[:, :, :2], v[:, :, :2], scale=scale)
""",
    "infinities": """
k = torch.full((1, 200, 1, 16), -math.inf)
k[0, 150] = 1.0
v = draw(1, 200, 1, 16)
assert torch.equal(run(torch.ones(1, 1, 1, 16), k, v)[0, 0], v[0, 150])
q = draw(1, 3, 1, 16)
q[0, 1, 0, 5] = math.nan
assert run(q, draw(1, 70, 1, 16), draw(1, 70, 1, 16)).isnan().flatten(2).all(2).tolist() == [[False, True, False]]
""",
}


@pytest.mark.parametrize("case", CASES)
def test_triton_results_equal_the_reference(case):
    run_triton(CHECK + CASES[case])
