"""The Triton kernel: run by the interpreter on a CPU, natively on a GPU."""

from __future__ import annotations

import pytest

from tests.ops.contract import indented, run_triton

CHECK = """
from tests.ops import test_bias_gelu as contract
draw = lambda *shape: torch.randn(*shape, generator=generator).to(device)
"""

CASES = {
    "shapes and dtypes": """
for n, d in [(1, 1), (3, 7), (5, 96), (2, 1408)]:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for bias_dtype in (torch.float32, dtype):
            contract.check(draw(n, d).to(dtype), draw(d).to(bias_dtype))
""",
    "strides, in place, empty": """
x, bias = draw(20, 9).T, draw(40)[::2]
contract.check(x, bias)
rows = x.contiguous()
assert torch.equal(bias_gelu(rows.clone(), bias, inplace=True), bias_gelu(x, bias))
assert bias_gelu(rows[:0], bias).shape == (0, 20)
""",
    "magnitudes and nan": """
for magnitude in (1e-30, 1e-4, 1e4, 1e30):
    contract.check(draw(3, 40) * magnitude, draw(40) * magnitude)
x = draw(3, 40)
x[1, 5] = math.nan
assert bias_gelu(x, draw(40)).isnan().nonzero().tolist() == [[1, 5]]
""",
    "gradients": """
x, bias = draw(6, 33).requires_grad_(), draw(33).requires_grad_()
grads = torch.autograd.grad(bias_gelu(x, bias).sin().sum(), (x, bias))
truth = [t.detach().double().requires_grad_() for t in (x, bias)]
exactly, plainly = (torch.autograd.grad(F.gelu(x + bias).sin().sum(), (x, bias)) for x, bias in (truth, (x, bias)))
for each in zip(grads, exactly, plainly):
    check_budget(*each, factor=3)
""",
}


@pytest.mark.parametrize("case", CASES)
def test_triton_results_are_those_of_the_definition(case):
    run_triton(CHECK + indented(CASES[case]))
