"""Loading and converting hold a model at most 1.3 times.

What is counted: the peak of the whole resident set (VmHWM) of a fresh process, less what was resident before the call.
That is anonymous memory, and also pages of the mapped files while they are mapped, though the kernel could drop those.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from seed_fast import SeedConfig
from seed_fast.convert import official_shapes

LIMIT = 1.3

MEASURE = """
import json, sys, torch
from seed_fast import SeedTokenizer
from seed_fast.convert import convert

def status(field):  # kB
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))

action, source, destination = sys.argv[1:]
SeedTokenizer.from_pretrained("seed-tiny")  # imports are no part of it
before = status("VmRSS:")
if action == "load":
    tok = SeedTokenizer.from_pretrained(source)
elif action == "save":
    tok = SeedTokenizer.from_pretrained(source)
    tok.save_pretrained(destination)
elif action == "half":
    tok = SeedTokenizer.from_pretrained(source, dtype=torch.bfloat16)
else:
    convert(source, destination, dtype="float32")
print(json.dumps({"peak": (status("VmHWM:") - before) * 1024}))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status"),
]


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """An official folder of a model with about 1 GB of float32 weights, and that size in bytes."""
    config = replace(SeedConfig.preset("seed-2"), vit_depth=7, qformer_depth=6, decoder_depth=1)
    prefix, eva, rest = "visual_encoder.", {}, {}
    size = 0
    for name, shape in official_shapes(config).items():
        size += shape.numel() * 4
        if name.startswith(prefix):
            eva[name.removeprefix(prefix)] = torch.rand(shape).half()
        else:
            rest[name] = torch.rand(shape)
    rest["surplus"] = torch.rand(size // 32)
    folder = tmp_path_factory.mktemp("big")
    torch.save(rest, folder / "seed_quantizer.pt")
    torch.save(eva, folder / "eva_vit_g.pth")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder, size


def peak(*arguments: object) -> int:
    command = [sys.executable, "-c", MEASURE, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["peak"]


def test_loading_holds_the_model_once(big, tmp_path):
    folder, size = big
    assert 0.9e9 < size < 1.2e9
    assert size <= peak("load", folder, "-") <= LIMIT * size


def test_loading_in_half_precision_holds_half_the_model(big):
    folder, size = big
    assert peak("half", folder, "-") <= LIMIT * size / 2


def test_converting_never_holds_the_model(big, tmp_path):
    folder, size = big
    assert peak("convert", folder, tmp_path / "ours") <= 0.3 * size
    assert size <= peak("save", tmp_path / "ours", tmp_path / "again") <= LIMIT * size


def test_legacy_pickles_are_within_the_limit_too(big, tmp_path):
    folder, size = big
    for name in ("seed_quantizer.pt", "eva_vit_g.pth"):
        state = torch.load(folder / name, weights_only=True)
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=False)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert peak("load", tmp_path, "-") <= LIMIT * size
