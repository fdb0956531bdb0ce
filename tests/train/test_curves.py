"""Over 200 steps the package's training, features cached, follows the official formulas with torch's plain AdamW."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.e2e import official_training as official
from seed_fast.train.batches import endless
from seed_fast.train.features import FeatureCache
from seed_fast.train.optimizer import parameter_groups
from seed_fast.train.stage1 import Stage1
from seed_fast.train.stage2 import Stage2
from tests.train.tiny import CONFIG, RECIPE, ListBatches, loop, stage1, stage2

pytestmark = pytest.mark.slow
STEPS = 200
# Slow enough that rounding doesn't grow beyond recognition: after 200 steps at 1e-3 float32 is 0.3 from float64.
CALM = replace(RECIPE, epochs=50, lr=1e-4, min_lr=1e-5, cosine="step")


def plain_curve(stage, dtype):
    """Losses of the official computation."""
    task = {1: stage1, 2: stage2}[stage]().to(dtype)
    groups = parameter_groups(task, CALM.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=CALM.lr, betas=CALM.betas, eps=CALM.eps)
    found = []
    for step, batch in zip(range(STEPS), endless(ListBatches(8)), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = CALM.schedule(step)
        pixels = batch["pixels"].to(dtype)
        with torch.no_grad():
            frozen = (
                official.vit_features(task.model.tokenizer.vit, pixels)
                if stage == 1
                else official.causal_embeddings(task.tokenizer, pixels)
            )
        loss = (
            official.stage1_loss(task.model, frozen, *task._captions(batch["captions"]))
            if stage == 1
            else official.stage2_loss(task.tokenizer, frozen, pixels.flatten(1)[:, : CONFIG.generation_dim])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def our_curve(stage, folder):
    """Losses of the package's loop."""
    if stage == 1:
        task = stage1()
        tok, shape, compute = task.model.tokenizer, (CONFIG.num_tokens, CONFIG.vit_dim), "vit_features"
    else:
        task = stage2()
        tok, shape, compute = task.tokenizer, (CONFIG.num_codes, CONFIG.qformer_dim), "causal_embeddings"
    cache = FeatureCache(
        folder / "cache", lambda batch: getattr(tok, compute)(batch["pixels"]), shape=shape, dtype=torch.float32,
        about={},
    )  # fmt: skip
    if stage == 1:
        cached = Stage1(task.model, task._captions, dropout=0.0, features=cache)
    else:
        cached = Stage2(tok, task._targets, dropout=0.0, causal=cache)
    assert loop(cached, folder / "run", recipe=CALM)()
    assert cache.count == 32
    return [json.loads(line)["loss"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", [1, 2])
def test_the_curve_is_the_official_one_within_the_noise_of_float32(tmp_path, stage):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        curves = plain_curve(stage, torch.float64), plain_curve(stage, torch.float32), our_curve(stage, tmp_path)
    finally:
        torch.set_num_threads(before)
    exact, plain, ours = (torch.tensor(curve, dtype=torch.float64) for curve in curves)
    assert len(exact) == len(ours) == STEPS
    assert exact[-20:].mean() < exact[:20].mean() - 0.05  # it learns
    # The error grows as training goes on, so it is judged up to each step.
    noise, apart = ((curve - exact).abs().cummax(0).values for curve in (plain, ours))
    assert bool((apart <= 4 * noise + 2e-6).all()), (apart / noise).max()
    assert apart[:50].max() < 1e-5
