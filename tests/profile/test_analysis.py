"""Shares, roofs and Amdahl's law from numbers that are known."""

from __future__ import annotations

import pytest

from seed_fast.profile.analysis import analyse
from seed_fast.profile.text import render


def stages(found):
    return {stage["name"]: stage for stage in found["stages"]}


def test_shares_are_of_the_whole_and_make_one_with_what_lies_between(found):
    top = [stage for stage in found["stages"] if stage["part_of"] is None]
    assert stages(found)["ViT"]["share"] == pytest.approx(0.4)
    assert found["whole"]["other_ms"] == pytest.approx(20)
    assert sum(stage["share"] for stage in top) + 0.2 == pytest.approx(1)


def test_amdahl_says_what_the_whole_gains_if_a_stage_took_no_time(found):
    assert stages(found)["ViT"]["gain_if_free"] == pytest.approx(100 / 60)
    assert stages(found)["decode+resize"]["gain_if_free"] == pytest.approx(100 / 90)


def test_a_roof_is_the_nearer_ceiling_in_the_dtype_of_the_stage(found):
    vit, qformer, nearest = (stages(found)[name] for name in ("ViT", "Q-Former", "nearest code"))
    assert (vit["bound"], vit["gemm_share"], vit["copy_share"]) == ("compute", 0.5, 0.25)
    assert vit["gain_at_roof"] == pytest.approx(100 / 80)
    assert (qformer["bound"], qformer["gemm_share"], qformer["copy_share"]) == ("memory", 0.25, 0.75)
    assert qformer["roof_ms"] == 15
    assert nearest["gemm_share"] == pytest.approx(0.2), "float32 has its own peak"
    assert vit["intensity"] == 40
    assert vit["gflops"] == 100


def test_a_stage_that_beats_its_roof_has_nothing_to_gain(known):
    samples, costs, ceilings = known
    samples.seconds["ViT"] = [0.01] * 3
    assert stages(analyse(samples, costs, ceilings, 4))["ViT"]["gain_at_roof"] == 1


def test_a_stage_without_a_cost_has_times_and_no_rates(found):
    decoding = stages(found)["decode+resize"]
    assert decoding["ms"]["median"] == 10
    assert decoding["idle_ms"] == 5
    assert decoding["flops"] is decoding["gemm_share"] is decoding["gain_at_roof"] is None


def test_the_whole_adds_up(found):
    whole = found["whole"]
    assert whole["images_per_second"] == pytest.approx(40)
    assert whole["flops"] == 51 * 10**8
    assert whole["gemm_share"] == pytest.approx((20 + 5 + 1) / 100)
    assert whole["launches"] == 35
    assert whole["decoding_cores"] == pytest.approx(10 / 70)


def test_parts_follow_their_stage_and_are_left_out_where_they_did_not_run(known, found):
    names = [stage["name"] for stage in found["stages"]]
    assert names[3:7] == ["Q-Former", "self-attention", "cross-attention", "FFN"]
    samples, *others = known
    for name in list(samples.seconds):
        if "/" in name:
            del samples.seconds[name]
    assert len(analyse(samples, *others, 4)["stages"]) == 5


def test_noisy_medians_never_make_a_gain_infinite_or_negative(known):
    samples, *others = known
    samples.wall = [0.03] * 3
    for stage in analyse(samples, *others, 4)["stages"]:
        assert 1 <= stage["gain_if_free"] < 2.1


def test_the_table_says_the_amdahl_line_and_a_busy_machine(found):
    text = render(found)
    row = next(line for line in text.splitlines() if line.startswith("ViT"))
    assert " ".join(row.split()) == "ViT 40 40..40 40.0% 4 100 50% 25% compute 7 20 1.67x 1.25x"
    assert "Amdahl: if ViT took no time at all, the whole would be 1.67x as fast; at its roof, 1.25x." in text
    assert "No other stage can gain more than 1.25x" in text
    assert "Other programs ran" not in text
    assert "load 1.5 on 2 cores" in render(found | {"load_before": 1.5})
