"""Learning rates and parameter groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from seed_fast.train.optimizer import Schedule, parameter_groups

OFFICIAL = Schedule(peak=1e-4, floor=1e-5, warmup=1e-6, warmup_steps=2000, epochs=10, epoch_steps=3000)


def test_the_official_schedule_warms_up_by_step_and_falls_by_epoch():
    assert OFFICIAL(0) == 1e-6
    assert OFFICIAL(1000) == pytest.approx((1e-6 + 1e-4) / 2)
    assert OFFICIAL(2000) == OFFICIAL(2999) == 1e-4
    for epoch in range(1, 10):
        rate = (1e-4 - 1e-5) * 0.5 * (1 + math.cos(math.pi * epoch / 10)) + 1e-5
        assert OFFICIAL(3000 * epoch) == OFFICIAL(3000 * epoch + 2999) == pytest.approx(rate)


def test_a_warmup_longer_than_the_first_epoch_ends_with_it():
    schedule = Schedule(peak=1.0, floor=0.0, warmup=0.0, warmup_steps=100, epochs=2, epoch_steps=50)
    assert schedule(49) == 0.49
    assert schedule(50) == pytest.approx(0.5)


def test_by_step_it_reaches_the_floor_after_the_last_step():
    schedule = Schedule(peak=1.0, floor=0.1, warmup=0.2, warmup_steps=10, epochs=3, epoch_steps=37, per="step")
    rates = [schedule(step) for step in range(schedule.steps)]
    assert rates[0] == 0.2
    assert rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_vectors_and_scalars_do_not_decay():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    module.scale, module.frozen = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    decays, rest = parameter_groups(module, 0.05)
    assert [tuple(p.shape) for p in decays["params"]] == [(4, 3)]
    assert sorted(p.ndim for p in rest["params"]) == [0, 1, 1, 1]
    assert (decays["weight_decay"], rest["weight_decay"]) == (0.05, 0.0)
