"""`SeedConfig` refuses what can't be built, and says what is wrong with it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from seed_fast import SeedConfig
from seed_fast.model.config import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_config_json(tmp_path, name):
    config = SeedConfig.preset(name)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert SeedConfig.from_file(path) == config


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"seed-1, seed-2, seed-2-rqf, seed-tiny, got 'seed-3'"):
        SeedConfig.preset("seed-3")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vit_heads": 15}, "vit_dim must be a multiple of vit_heads, got 1408 and 15"),
        ({"image_size": 225}, "image_size must be a multiple of patch_size, got 225 and 14"),
        ({"qformer_heads": 7}, "qformer_dim must be a multiple of qformer_heads"),
        ({"decoder_heads": 7}, "qformer_dim must be a multiple of decoder_heads"),
        ({"num_codes": 0}, "num_codes must be at least 1, got 0"),
        ({"head": "mpl"}, "head must be one of mlp, reverse_qformer, got 'mpl'"),
        ({"resize": "nearest"}, "resize must be one of bicubic, bilinear, bilinear_crop, got 'nearest'"),
        ({"generation_tokens": 77}, "generation_tokens must be 1 with head 'mlp'"),
        ({"head": "reverse_qformer", "reverse_depth": 0}, "reverse_depth must be at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SeedConfig.preset("seed-2"), **change)


@pytest.mark.parametrize("change", [{"vit_dim": 1408.0}, {"vit_depth": True}, {"head": 1}])
def test_a_wrong_type_is_a_type_error(change):
    with pytest.raises(TypeError, match=next(iter(change))):
        replace(SeedConfig.preset("seed-2"), **change)


def test_a_misspelt_field_is_named_with_the_right_spelling():
    values = SeedConfig.preset("seed-2").to_dict()
    values["codebok_size"] = values.pop("codebook_size")
    with pytest.raises(ValueError, match=r"config.json: unknown field 'codebok_size'; did you mean 'codebook_size'\?"):
        SeedConfig.from_dict(values, source="config.json")


def test_a_missing_field_is_named_and_not_defaulted():
    values = SeedConfig.preset("seed-2").to_dict()
    del values["vit_heads"]
    with pytest.raises(ValueError, match=r"missing field\(s\) vit_heads"):
        SeedConfig.from_dict(values)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\x00\x01"])
def test_a_config_file_that_is_no_json_object_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        SeedConfig.from_file(path)
