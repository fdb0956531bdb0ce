"""add_layer_norm and bias_gelu: the PTX of the CUDA and the Triton kernels, within twice the error of plain torch."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F

from seed_fast.ops.backends import add_layer_norm as norm_backend
from seed_fast.ops.backends import bias_gelu as gelu_backend
from tests.ops import test_add_layer_norm as norm_truth
from tests.ops import test_bias_gelu as gelu_truth
from tests.ptx.machine import call, check_coverage
from tests.ptx.test_vector_quantize import with_gaps

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def draw(n: int, d: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed + 31 * n + d)).to(dtype)


def close(got: torch.Tensor, truth: torch.Tensor, plain: torch.Tensor, name: str) -> None:
    assert torch.equal(got.isnan(), truth.isnan()), name
    error, budget = ((x.double() - truth).abs().nan_to_num(0).max() for x in (got, plain))
    rounding = torch.finfo(got.dtype).eps * truth.abs().nan_to_num(0).max()
    assert error <= 2 * max(budget, rounding), f"{name}: error {error:.3g}, plain torch {budget:.3g}"


def check_norm(kernel, x, delta, out_dtype=F32, post_norm=False, eps=1e-6, **options) -> None:
    weight, bias = 1 + 0.1 * draw(1, x.shape[1], F32, 5)[0], 0.1 * draw(1, x.shape[1], F32, 6)[0]

    def run(x, delta, weight, bias):
        stream, y = x.new_empty(x.shape), x.new_empty(x.shape, dtype=out_dtype)
        kernel(x, delta, weight, bias, eps, post_norm, stream, y)
        return stream, y

    got = call(run, x, delta, weight, bias, tensor_cores="exact", **options)
    truth = norm_truth.exact(x, delta, weight, bias, eps, post_norm)
    plain = norm_truth.plain(x, delta, weight, bias, eps, out_dtype, post_norm)
    for mine, true, theirs in zip(got, truth, plain, strict=True):
        close(mine, true, theirs, f"{tuple(x.shape)} {x.dtype} {delta.dtype} {out_dtype} post_norm={post_norm}")


def check_gelu(kernel, x, bias, **options) -> None:
    def run(x, bias):
        y = x.new_empty(x.shape)
        kernel(x, bias, y)
        return y

    plain = F.gelu(x + bias).to(x.dtype)
    close(
        call(run, x, bias, tensor_cores="exact", **options),
        gelu_truth.exact(x, bias),
        plain,
        f"{tuple(x.shape)} {x.dtype} {bias.dtype}",
    )


@contextlib.contextmanager
def triton():
    pytest.importorskip("triton")
    from tests.ptx.triton_driver import sm80

    with sm80():
        yield


def test_a_few_rows_on_cuda():
    check_norm(norm_backend.cuda, draw(5, 96, F32), draw(5, 96, F16, 1), F16)
    check_norm(norm_backend.cuda, draw(3, 31, F32), draw(3, 31, F32, 1), post_norm=True)
    check_gelu(gelu_backend.cuda, draw(5, 96, F16), draw(1, 96, F16, 1)[0])


def test_a_few_rows_on_triton():
    with triton():
        check_norm(norm_backend.triton, draw(5, 96, F32), draw(5, 96, F16, 1), F16)
        check_gelu(gelu_backend.triton, draw(5, 96, F16), draw(1, 96, F16, 1)[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cuda", "triton"])
def test_rows_of_all_kinds_and_nearly_every_instruction_runs(kind):
    with triton() if kind == "triton" else contextlib.nullcontext():
        norm, gelu = getattr(norm_backend, kind), getattr(gelu_backend, kind)
        sizes = [(1, 1), (3, 32), (5, 31), (9, 96), (6, 768), (4, 1408), (3, 2052), (2, 4100), (1, 8192), (2, 8200)]
        for index, (n, d) in enumerate(sizes):
            for x_type, delta_type, out_type in (
                (F32, F32, F32),
                (F32, F16, F16),
                (F32, BF16, BF16),
                (F16, F16, F16),
                (BF16, F32, BF16),
            ):
                x, delta = draw(n, d, x_type), draw(n, d, delta_type, 1)
                check_norm(norm, x, delta, out_type, post_norm=bool(index % 2), seed=index)
                check_norm(norm, with_gaps(x, d + 3, 1), with_gaps(delta, d + 3, 1), out_type, seed=index)
            for x_type, bias_type in ((F32, F32), (F16, F16), (BF16, BF16), (F32, F16), (F16, F32)):
                x, bias = draw(n, d, x_type) * 3, draw(1, d, bias_type, 2)[0]
                check_gelu(gelu, x, bias, seed=index)
                check_gelu(gelu, with_gaps(x, d + 5, 1), bias, seed=index)
        for dtype in (F32, F16, BF16):  # enough rows for a block to take several
            check_gelu(gelu, draw(2701, 8, dtype), draw(1, 8, dtype)[0])
            check_gelu(gelu, with_gaps(draw(2701, 8, dtype), 11, 1), draw(1, 8, dtype)[0])
        broken = draw(4, 96, F32)
        broken[1, 7] = float("nan")
        check_norm(norm, broken, draw(4, 96, F32, 1))
        check_gelu(gelu, broken, draw(1, 96, F32, 1)[0])
        wide = torch.linspace(-40, 40, 4096).reshape(4, 1024)
        check_gelu(gelu, wide, torch.zeros(1024))
        if kind == "cuda":
            check_coverage("add_layer_norm", 70, 0.85, 0.5)
            check_coverage("bias_gelu", 70, 0.85, 0.5)
