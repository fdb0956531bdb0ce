"""The Triton kernel: run by the interpreter on a CPU, natively on a GPU."""

from __future__ import annotations

import pytest

from tests.ops.contract import indented, run_triton

CHECK = """
from tests.ops import test_add_layer_norm as contract
draw = lambda *shape: torch.randn(*shape, generator=generator).to(device)
"""

CASES = {
    "shapes and dtypes": """
for n, d in [(1, 1), (3, 7), (5, 96), (2, 1408)]:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for post_norm in (False, True):
            x, delta, weight, bias = draw(n, d), draw(n, d).to(dtype), 1 + 0.1 * draw(d), 0.1 * draw(d)
            contract.check((x, delta, weight, bias), out_dtype=dtype, post_norm=post_norm)
""",
    "mixed dtypes and strides": """
# The interpreter cuts bfloat16 off where a GPU rounds, so that no sum that is kept in it could be compared.
for dtype in (torch.float16, *([torch.bfloat16] if device == "cuda" else [])):
    x, delta, weight, bias = draw(20, 9).to(dtype).T, draw(9, 40)[:, ::2], draw(40)[::2], draw(20).bfloat16()
    for post_norm in (False, True):
        contract.check((x, delta, weight, bias), out_dtype=torch.float32, post_norm=post_norm)
""",
    "constant, nan, far from zero, empty": """
x, delta, weight, bias = draw(6, 1408), torch.zeros(6, 1408, device=device), 1 + 0.1 * draw(1408), draw(1408)
x[3], x[4, 7], x[5] = 0.1, math.nan, x[5] + 4096
y = add_layer_norm(x, delta, weight, bias, 1e-12)[1]
assert torch.equal(y[3], bias)
assert y.isnan().any(1).tolist() == [False, False, False, False, True, False]
contract.check((x[5:], delta[5:], weight, bias))
x, y = add_layer_norm(x[:0], delta[:0], weight, bias, 1e-12)
assert x.shape == y.shape == (0, 1408)
""",
    "in place and gradients": """
from seed_fast.ops.backends import add_layer_norm as backends
x, delta, weight, bias = draw(6, 33), draw(6, 33), draw(33), draw(33)
stream, y = add_layer_norm(x, delta, weight, bias, 1e-6)
again = torch.empty(6, 33, device=device)
backends.triton(x, delta, weight, bias, 1e-6, False, x, again)
assert torch.equal(x, stream) and torch.equal(again, y)
tensors = [t.requires_grad_() for t in (x, delta, weight, bias)]
grads = torch.autograd.grad(add_layer_norm(*tensors, 1e-6)[1].sin().sum(), tensors)
truth = [t.detach().double().requires_grad_() for t in tensors]
exactly, plainly = (
    torch.autograd.grad(F.layer_norm(x + delta, (33,), weight, bias, 1e-6).sin().sum(), (x, delta, weight, bias))
    for x, delta, weight, bias in (truth, tensors)
)
for each in zip(grads, exactly, plainly):
    check_budget(*each, factor=3)
""",
}


@pytest.mark.parametrize("case", CASES)
def test_triton_results_are_those_of_the_definition(case):
    run_triton(CHECK + indented(CASES[case]))
