"""The benchmark of language-model training: both sides take the same steps."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("peft")
pytest.importorskip("accelerate")

from benchmarks.e2e import train_lm, train_lm_losses


@pytest.mark.filterwarnings("ignore")  # of the peer
def test_ours_and_the_trainer_take_the_same_steps():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = train_lm_losses.curves("tiny", "float32", "cpu", steps=3)
    finally:
        torch.set_num_threads(before)
    ours, peer = found[train_lm.OURS], found[train_lm.TRAINER]
    assert ours == pytest.approx(peer, rel=1e-5)
    assert len(set(ours)) == 3


def test_rows_are_full_and_half_supervised():
    batch = train_lm.rows_of(4, 512, seed=0)
    assert (batch["segments"] > 0).double().mean() > 0.95
    assert 0.3 < (batch["labels"] != -100).double().mean() < 0.6
    assert int(batch["ids"].max()) < train_lm.TEXT_TOKENS + train_lm.CODEBOOK + 2
