"""Official state dicts come in and go out: every name, shape, type and value."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from seed_fast import SeedConfig, SeedTokenizer
from seed_fast.convert import from_official, to_official
from seed_fast.convert.names import recognise
from seed_fast.testing import random_official_state_dict


@pytest.mark.parametrize(
    ("keys", "config"),
    [
        ("seed2_mlp", SeedConfig.preset("seed-2")),
        ("seed2_rqf", replace(SeedConfig.preset("seed-2-rqf"), reverse_depth=12)),  # what the inference class builds
        ("seed1", SeedConfig.preset("seed-1")),
    ],
)
def test_full_size_names_shapes_and_types_are_the_official_ones(request, keys, config):
    lines = (request.config.rootpath / "tests" / "golden" / f"keys_{keys}.txt").read_text().splitlines()
    official = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    tok = SeedTokenizer(config, device="meta")
    ours = [f"{name} {tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for name, t in to_official(tok).items()]
    assert len(ours) == len(set(ours))
    assert set(ours) == official


def assert_equal(ours: dict, official: dict) -> None:
    assert ours.keys() == official.keys()
    for name, value in official.items():
        assert ours[name].dtype == value.dtype, name
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("name", ["seed1_tiny", "seed2_tiny", "seed2_rqf_tiny"])
def test_golden_weights_survive_the_round_trip(golden, name):
    file = golden(name)
    assert_equal(to_official(from_official(file.weights, file.config)), file.weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_directions_are_inverse_at_other_sizes(config, dtype):
    official = random_official_state_dict(config, seed=0, dtype=dtype)
    tok = from_official(official, config)
    assert tok.dtype == dtype
    assert tok.trained
    assert_equal(to_official(tok), official)
    again = from_official(to_official(tok), config)
    assert_equal(again.state_dict(), tok.state_dict())


def test_every_weight_takes_part(config):
    """A tensor that two modules share, or that none reads, would come back right and still be wrong."""
    tok = from_official(random_official_state_dict(config, seed=0), config)
    image = torch.randn(2, 3, config.image_size, config.image_size)
    up = tok.quantizer(tok.lookup(tok.causal_embeddings(image)))
    outputs = [tok.quantizer.encode_task(tok.causal_embeddings(image)), tok.head(tok.generator(up))]
    if tok.reconstructor is not None:
        outputs.append(tok.reconstructor(up))
    sum(output.square().sum() for output in outputs).backward()
    assert [name for name, weight in tok.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_mixed_types_become_the_widest(seed2, weights):
    mixed = {name: value.half() if name.startswith("visual_encoder.") else value for name, value in weights.items()}
    tok = from_official(mixed, seed2)
    assert {parameter.dtype for parameter in tok.parameters()} == {torch.float32}


def test_weights_are_shared_not_copied(seed2, weights):
    tok = from_official(weights, seed2)
    assert tok.quantizer.codebook.data_ptr() == weights["quantize.embedding.weight"].data_ptr()


def test_surplus_names_are_listed_once_and_left_out(seed2, weights, caplog):
    surplus = {"text_proj.weight": torch.zeros(3), "Qformer.cls.predictions.bias": torch.zeros(2)}
    with caplog.at_level(logging.WARNING):
        tok = from_official({**weights, **surplus}, seed2)
    assert len(caplog.records) == 1
    assert all(name in caplog.text for name in surplus)
    assert_equal(to_official(tok), weights)


def test_many_surplus_names_are_listed_by_kind(seed2, weights, caplog):
    surplus = {f"Qformer.bert.encoder.layer.{i}.output.dense.weight": torch.zeros(1) for i in range(30)}
    with caplog.at_level(logging.WARNING):
        from_official({**weights, **surplus}, seed2)
    assert "left out 30 tensors" in caplog.text
    assert caplog.text.count("layer.*.output.dense.weight") == 1


def test_a_surplus_name_that_is_alone_of_its_kind_keeps_its_number(seed2, weights, caplog):
    surplus = {f"text.{i}.weight": torch.zeros(1) for i in range(30)} | {"visual_encoder.blocks.39.x": torch.zeros(1)}
    with caplog.at_level(logging.WARNING):
        from_official({**weights, **surplus}, seed2)
    assert caplog.messages[0].endswith(": text.*.weight, visual_encoder.blocks.39.x")


def test_nothing_is_logged_without_surplus_names(config, caplog):
    with caplog.at_level(logging.WARNING, logger="seed_fast.convert"):
        from_official(random_official_state_dict(config, seed=0), config)
    assert caplog.text == ""


def test_position_ids_may_be_absent(seed2, weights):
    official = {name: value for name, value in weights.items() if not name.endswith("position_ids")}
    assert_equal(to_official(from_official(official, seed2)), weights)


def test_missing_names_are_counted_and_the_first_are_named(seed2, weights):
    for name in [name for name in weights if name.startswith("blocks.")]:
        del weights[name]
    with pytest.raises(ValueError, match=r"36 are missing: blocks\.0\.norm1\.weight, .*, \.\.\."):
        from_official(weights, seed2)


def test_a_wrong_shape_is_named_with_what_was_expected(seed2, weights):
    weights["distill_image_proj.weight"] = torch.zeros(20, 48)
    with pytest.raises(ValueError, match=r"distill_image_proj\.weight must be \[20, 1024\] .*, got \[20, 48\]"):
        from_official(weights, seed2)


@pytest.mark.parametrize("preset", ["seed-1", "seed-2", "seed-2-rqf"])
def test_the_preset_is_recognised_from_the_names(preset):
    config = SeedConfig.preset(preset)
    names = set(to_official(SeedTokenizer(config, device="meta")))
    assert recognise(names) == config
    if preset == "seed-2":
        # The released file has surplus tensors, which may be those of the branch for text.
        text = set(to_official(SeedTokenizer(SeedConfig.preset("seed-1"), device="meta")))
        assert recognise(names | text) == config


def test_the_depth_of_the_reverse_qformer_is_recognised():
    config = replace(SeedConfig.preset("seed-2-rqf"), reverse_depth=12)
    assert recognise(set(to_official(SeedTokenizer(config, device="meta")))) == config
