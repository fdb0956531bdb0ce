"""Hub ids wherever a folder is taken: against a hub on this machine, in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")

from PIL import Image

from seed_fast import SeedConfig, SeedTokenizer, _hub
from seed_fast.data.tokens import TokenizerIdentity
from seed_fast.lm.model import build, save
from seed_fast.lm.pretrained import base_of, base_reference
from tests.fake_hub import FakeHub
from tests.lm import tiny
from tests.lm.test_image_tokenizer import SIZES, store_of

# Several command lines in one process: importing takes longer than what they do.
RUN = """
import json, sys
from typer.testing import CliRunner
from seed_fast.cli import app
for line in sys.stdin:
    done = CliRunner().invoke(app, json.loads(line))
    print(json.dumps([done.exit_code, done.stdout, done.stderr]), flush=True)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """acme/tok, acme/base, and acme/lm, an adapter on acme/base with other weights at its tag `old`."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    tok = SeedTokenizer(SeedConfig(**SIZES)).eval()
    tok.save_pretrained(folder / "tok")
    identity = TokenizerIdentity.of_tokenizer(tok, "acme/tok")
    tiny.base(folder / "base")
    for name, scale in (("lm", 0.3), ("old", 0.0)):
        language = build(folder / "base", codebook_size=tiny.CODEBOOK)
        with torch.no_grad():
            for parameter in language.model.parameters():
                if parameter.requires_grad:
                    parameter += scale * torch.randn(parameter.shape)
        language.model.get_base_model().config.name_or_path = "acme/base"
        save(language.model, language.tokenizer, folder / name, identity=identity)
    (folder / "lm" / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "lm" / "checkpoints" / "step-1" / "model.safetensors").write_bytes(b"not needed")
    store_of(folder / "store", identity)
    Image.radial_gradient("L").save(folder / "a.png")
    served = FakeHub(
        {
            "acme/tok": {"main": folder / "tok"},
            "acme/base": {"main": folder / "base", "v1": folder / "base"},
            "acme/lm": {"main": folder / "lm", "old": folder / "old"},
        }
    )
    yield served, folder
    served.close()


def run(*lines: list[object], cache: Path, hub: FakeHub | None, cwd: Path) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of command lines, with a hub, or without any network."""
    where = {"HF_HUB_OFFLINE": "1"} if hub is None else {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    environment = {**os.environ, **where, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    given = "".join(json.dumps([str(word) for word in line]) + "\n" for line in lines)
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=given, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_every_option_that_names_a_folder_takes_a_hub_id(hub, tmp_path):
    served, folder = hub
    caption = ["caption", folder / "a.png", "--max-tokens", 4, "--model", "acme/tok", "--lm"]
    train = ["train", "lm", "--data", folder / "store", "--steps", 1, "--batch-size", 4, "--accumulate", 1, "--length"]
    train += [32, "--device", "cpu", "--model"]
    found = run(
        [*caption, "acme/lm"],
        [*caption, "acme/lm@old"],
        [*caption, "acme/lm", "--base", "acme/base@v1"],
        [*caption, folder / "lm", "--base", folder / "base"],
        ["tokenize", folder / "a.png", "--model", "acme/tok", "-o", "codes.jsonl"],
        [*train, "acme/base@v1", "-o", "run", "--codebook", "acme/tok"],
        [*train, "acme/base@v1", "-o", "plain"],
        [*train, "acme/lm", "-o", "further"],
        cache=tmp_path / "cache", hub=served, cwd=tmp_path,
    )  # fmt: skip
    assert [code for code, _, _ in found] == [0] * 8, found
    assert found[0][1] == found[2][1] == found[3][1]
    assert found[0][1] != found[1][1], "the tag has other weights"
    saved = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    assert (saved["base_model_name_or_path"], saved["revision"]) == ("acme/base", "v1")
    assert "base_model: acme/base" in (tmp_path / "plain" / "README.md").read_text()
    saved = json.loads((tmp_path / "further" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == "acme/base"
    assert not any("checkpoints" in path for path in served.asked if "/resolve/" in path)

    # Without a network the cache serves; what it lacks is one line, and a local folder wins.
    (tmp_path / "acme").mkdir()
    shutil.copytree(folder / "old", tmp_path / "acme" / "elsewhere")
    again = run(
        [*caption, "acme/lm"],
        [*caption, "acme/lm@older"],
        [*caption, "acme/elsewhere"],
        ["tokenize", folder / "a.png", "--model", "acme/nothing", "-o", "none.jsonl"],
        cache=tmp_path / "cache", hub=None, cwd=tmp_path,
    )  # fmt: skip
    assert again[0] == found[0]
    assert again[2][:2] == found[1][:2]
    for (code, _, stderr), name in ((again[1], "acme/lm@older"), (again[3], "acme/nothing")):
        assert code == 1
        (line,) = stderr.splitlines()
        assert line.startswith(
            f"seed-fast: error: {name}: no such folder, and not downloadable from the Hugging Face hub"
        )


def test_what_the_hub_does_not_have_is_one_line(hub, tmp_path):
    served, folder = hub
    caption = ["caption", folder / "a.png", "--model", "acme/tok", "--lm"]
    found = run(
        [*caption, "acme/nobody"], [*caption, "acme/lm@never"], [*caption, "nowhere"],
        cache=tmp_path / "cache", hub=served, cwd=tmp_path,
    )  # fmt: skip
    for (code, _, stderr), name in zip(found, ("acme/nobody", "acme/lm@never", "nowhere"), strict=True):
        assert code == 1, stderr
        (line,) = stderr.splitlines()
        assert name in line


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", ("owner/name", None)),
        ("owner/name@v1.0", ("owner/name", "v1.0")),
        ("owner/name@refs/pr/1", ("owner/name", "refs/pr/1")),
        ("name", None),
        ("./name", None),
        ("../name", None),
        ("/owner/name", None),
        ("a/b/c", None),
        ("owner/name@", None),
    ],
)
def test_what_is_a_hub_id(name, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _hub.hub_id(name) == expected
    if expected:
        (tmp_path / name).mkdir(parents=True)
        assert _hub.hub_id(name) is None, "a local folder wins"


def test_a_base_on_the_hub_keeps_its_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert base_reference("acme/base@v1", tmp_path / "out") == ("acme/base", "v1")
    saved = {"base_model_name_or_path": "acme/base", "revision": "v1"}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapter_config.json").write_text(json.dumps(saved))
    assert base_of("out") == "acme/base@v1"
