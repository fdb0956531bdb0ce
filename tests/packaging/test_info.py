"""`seed_fast.info`: what it collects and how it reads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import seed_fast
from seed_fast import info


def test_it_collects_versions_devices_build_and_every_op():
    collected = info.collect()
    assert collected["versions"]["seed_fast"] == seed_fast.__version__
    assert collected["versions"]["torch"]
    assert collected["devices"]["cpu"]["threads"] >= 1
    assert {(row["op"], row["backend"]) for row in collected["ops"]} >= {
        ("nearest_code", name) for name in ("reference", "cpu", "triton", "cuda")
    }
    assert json.loads(json.dumps(collected)) == collected


def test_every_backend_that_cannot_run_is_shown_with_its_reason():
    collected = info.collect()
    text = info.render(collected)
    for row in collected["ops"]:
        (line,) = [line for line in text.splitlines() if line.split()[:2] == [row["op"], row["backend"]]]
        if not row["available"]:
            assert row["reason"]
            assert " no" in line
            assert row["reason"] in text
        if row["note"]:
            assert row["note"] in text


def test_a_reason_that_several_backends_share_is_printed_once():
    collected = info.collect()
    rows = collected["ops"]
    for row in rows:
        if row["backend"] != "reference":
            row |= {"available": False, "reason": "the driver is too old", "note": "never run on a GPU"}
    text = info.render(collected)
    assert text.count("the driver is too old") == 1
    assert text.count("never run on a GPU") == 1
    # Every line that the reason is about refers to it by the same number.
    (number,) = [line.split()[0] for line in text.splitlines() if line.endswith("] the driver is too old")]
    assert text.count(f" no {number}") == sum(row["backend"] != "reference" for row in rows)


def test_the_reason_that_the_module_gives_is_not_repeated_by_its_backends():
    collected = info.collect()
    reason = "CUDA error 35: no driver"
    collected["build"] = {
        "compiled": True, "reason": "", "compiler": "g++", "system": "Linux", "python": "3.11", "version": "0",
        "cuda": {"embedded": True, "usable": False, "unusable_reason": reason,
                 "device_code": {"sources": {}, "architectures": [], "ptx": [], "bytes": 0, "compiler": "NVRTC"}},
    }  # fmt: skip
    for row in collected["ops"]:
        if row["backend"] == "cuda":
            row |= {"available": False, "reason": reason}
    text = info.render(collected)
    assert text.count(reason) == 1
    assert text.count('no: see "CUDA usable"') == sum(row["backend"] == "cuda" for row in collected["ops"])


def test_a_build_that_failed_is_shown_with_the_reason_that_was_kept(monkeypatch, tmp_path):
    kept = tmp_path / "failure.txt"
    kept.write_text("cmake is not installed\n")
    monkeypatch.setattr(info, "_FAILURE", kept)
    monkeypatch.setitem(sys.modules, "seed_fast._C", None)
    collected = info.collect()
    assert collected["build"]["compiled"] is False
    assert "could not be built at installation: cmake is not installed" in info.render(collected)


def test_a_pure_python_installation_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(info, "_FAILURE", tmp_path / "absent.txt")
    monkeypatch.setitem(sys.modules, "seed_fast._C", None)
    assert info.build_summary() == "compiled: no: this is a pure-Python installation"


def test_a_module_of_another_version_is_called_stale(monkeypatch):
    pytest.importorskip("seed_fast._C", reason="pure-Python installation")
    monkeypatch.setattr(seed_fast, "__version__", "99.0.0")
    assert "install seed_fast 99.0.0 again" in info.render(info.collect())


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "seed_fast.info"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("versions\n")
    assert result.stderr == ""
