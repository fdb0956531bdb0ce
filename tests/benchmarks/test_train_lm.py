"""The benchmark of language-model training: both sides take the same steps."""

from __future__ import annotations

import copy
import sys

import pytest
import torch

pytest.importorskip("peft")
pytest.importorskip("accelerate")

from benchmarks import memory
from benchmarks.e2e import train_lm, train_lm_losses
from seed_fast.testing import check_budget


@pytest.mark.filterwarnings("ignore")  # of the peer
def test_ours_and_the_trainer_take_the_same_steps(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        single = train_lm_losses.curves("tiny", "float32", "cpu", steps=3)
        in_float32 = train_lm.adapted
        monkeypatch.setattr(train_lm, "adapted", lambda *given: copy.deepcopy(in_float32(*given)).double())
        double = train_lm_losses.curves("tiny", "float32", "cpu", steps=3)
    finally:
        torch.set_num_threads(before)
    truth = torch.tensor(double[train_lm.OURS], dtype=torch.float64)
    assert len(set(truth.tolist())) == 3
    # The Trainer's loss is float32 even of a model in float64, so that the two agree there to a rounding or two.
    check_budget(torch.tensor(double[train_lm.TRAINER]), truth, truth.float())
    ours, peer = (torch.tensor(single[name]) for name in (train_lm.OURS, train_lm.TRAINER))
    check_budget(ours, truth, peer)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_memory_is_that_of_a_process_of_one_provider_alone():
    provider = train_lm.TRAIN_LM.provider(train_lm.OURS)
    peak = memory.measured(train_lm.TRAIN_LM, train_lm.TINY, provider, "cpu", 1, call=lambda: pytest.fail("here"))
    # torch and transformers alone are more than the first, and a full-size model would be more than the second.
    assert 2e8 < peak < 2e9


def test_rows_are_full_and_half_supervised():
    batch = train_lm.rows_of(4, 512, seed=0)
    assert (batch["segments"] > 0).double().mean() > 0.95
    assert 0.3 < (batch["labels"] != -100).double().mean() < 0.6
    assert int(batch["ids"].max()) < train_lm.TEXT_TOKENS + train_lm.CODEBOOK + 2
