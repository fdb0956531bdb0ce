"""Ceilings are measured in bounded time, however slow a product is."""

from __future__ import annotations

import time

import pytest
import torch

from seed_fast.profile import ceilings


@pytest.fixture
def slow(monkeypatch):
    """Products that take 20 ms per 2^21 multiply-adds, and their sides."""
    sides = []

    def multiply(a, b, out):
        sides.append(len(a))
        time.sleep(0.02 * len(a) ** 3 / 128**3)

    monkeypatch.setattr(ceilings, "_libraries", lambda device, dtype: {"slow": multiply})
    return sides


def test_a_slow_product_ends_in_about_its_time_with_the_rate_of_the_largest_that_fits(slow):
    start = time.perf_counter()
    rate = ceilings.gemm_peak("cpu", torch.float32, 2048, seconds=0.6)
    assert time.perf_counter() - start < 3
    assert max(slow) == 256
    assert 0.1 < rate < 2 * 128**3 / 0.02 / 1e9 * 1.05


def test_a_product_that_takes_longer_than_all_the_time_is_called_once(slow):
    ceilings.gemm_peak("cpu", torch.float32, 2048, seconds=0.01)
    assert slow == [128]


def test_a_fast_product_reaches_the_full_size(monkeypatch):
    sides = []
    monkeypatch.setattr(ceilings, "_libraries", lambda device, dtype: {"fast": lambda a, b, out: sides.append(len(a))})
    ceilings.gemm_peak("cpu", torch.float32, 300)
    assert sorted(set(sides)) == [128, 256, 300]


def test_all_ceilings_are_rates():
    found = ceilings.ceilings("cpu", quick=True)
    assert set(found) == {"gemm_float32_gflops", "gemm_bfloat16_gflops", "copy_gb_per_s"}
    assert all(value > 0 for value in found.values())


def test_the_ceiling_of_half_precision_is_float32s_where_the_plan_computes_it_so(monkeypatch):
    monkeypatch.setenv("SEED_FAST_PRODUCTS", "float32")
    assert "float32" in ceilings._libraries(torch.device("cpu"), torch.bfloat16)
    assert "float32" not in ceilings._libraries(torch.device("cpu"), torch.float32)
