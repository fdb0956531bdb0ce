"""Every op has all of its parts: one without a backend, a fake, an opcheck, a benchmark or a page fails here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seed_fast import ops
from seed_fast.ops import backend_table
from tests.ops import contract

ROOT = Path(__file__).parents[2]
REGISTERED = {row["op"] for row in backend_table()}
OPS = sorted(op for op in REGISTERED if not op.endswith("_backward"))


def test_public_ops_are_the_registered_ones():
    helpers = {"BackendError", "PackedCodebook", "backend", "backend_table", "explain", "forced", "pack_codebook"}
    assert set(OPS) == set(ops.__all__) - helpers == set(contract.OPS)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ["cpu", "cuda", "triton", "reference"])
def test_op_has_every_backend(op, name):
    assert name in {row["backend"] for row in backend_table() if row["op"] == op}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "place",
    [
        "seed_fast/ops/{op}.py",
        "seed_fast/ops/backends/{op}.py",
        "csrc/cpu/{op}.cpp",
        "csrc/cuda/{op}*.cu",
        "csrc/bind_{op}.cpp",
        "kernels/triton_ops/{op}.py",
        "tests/ops/test_{op}.py",
        "tests/ops/test_{op}_triton.py",
        "tests/ops/test_{op}_cuda.py",
        "csrc/tests/{op}_cuda*_test.cpp",
        "benchmarks/ops/{op}.py",
        "docs/ops/{op}.md",
    ],
)
def test_op_has_its_file(op, place):
    assert list(ROOT.glob(place.format(op=op))), place.format(op=op)


@pytest.mark.parametrize("op", sorted(REGISTERED))
def test_op_has_a_fake(op):
    overload = getattr(torch.ops.seed_fast, op).default
    assert torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), "CompositeExplicitAutograd")
    assert torch._library.simple_registry.singleton.find(f"seed_fast::{op}").fake_impl.kernel is not None
