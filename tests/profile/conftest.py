"""A profile whose every number is known."""

from __future__ import annotations

import pytest

from seed_fast.profile.analysis import analyse
from seed_fast.profile.cost import Cost
from seed_fast.profile.measure import PARTS, STAGES, Samples

CEILINGS = {"gemm_float32_gflops": 100.0, "gemm_bfloat16_gflops": 200.0, "copy_gb_per_s": 10.0}


@pytest.fixture
def known():
    """Samples, costs and ceilings; the stages take 10, 5, 40, 20 and 5 ms, and 20 ms lie between them."""
    samples = Samples(wall=[0.1] * 3, launches=dict.fromkeys(STAGES, 7))
    for name, ms in zip(STAGES, (10, 5, 40, 20, 5), strict=True):
        samples.seconds[name] = [ms / 1000] * 3
        samples.idle[name] = [ms / 2000] * 3
    for name in PARTS:
        samples.seconds[name] = [0.005] * 3
    costs = {
        "normalise": Cost(0, 0, 5 * 10**6, "float32"),
        "ViT": Cost(4 * 10**9, 10**8, 0, "bfloat16"),  # 20 ms at the peak, 10 ms of copies
        "Q-Former": Cost(10**9, 10**8, 5 * 10**7, "bfloat16"),  # 5 ms at the peak, 15 ms of copies
        "nearest code": Cost(10**8, 10**6, 0, "float32"),
    }
    costs |= {name: Cost(10**8, 10**6, 10**6, "bfloat16") for name in PARTS}
    return samples, costs, CEILINGS


@pytest.fixture
def found(known):
    """What a run returns for them."""
    about = {
        "schema": 1, "model": "a model", "plan": "fast", "cross_attention": "absorbed", "dtype": "bfloat16",
        "device": "cpu", "batch_size": 4, "rounds": 3, "notes": [], "threads": 2, "load_before": 0.0,
        "ceilings": CEILINGS, "versions": {"torch": "2.0"},
        "devices": {"cpu": {"model": "a CPU", "cores": 2}, "gpus": []},
    }  # fmt: skip
    return about | analyse(*known, batch=4)
