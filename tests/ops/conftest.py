"""Fixtures that the tests of several ops share."""

from __future__ import annotations

import math

import pytest
import torch

from seed_fast.ops import backend


@pytest.fixture
def poisoned(monkeypatch):
    """New tensors of an op hold NaN, so that what a kernel leaves unwritten shows."""
    fresh = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: fresh(*shape, **options).fill_(math.nan))


@pytest.fixture
def cuda():
    """Runs the test on our CUDA kernels."""
    with backend("cuda"):
        yield


@pytest.fixture
def threads():
    """Sets the number of threads, which is what it was when the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
