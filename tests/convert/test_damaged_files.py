"""Files that are damaged, hostile or something else: one clear error that names the file, and nothing of it is run."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from seed_fast import SeedTokenizer
from seed_fast.convert import CheckpointError, convert
from seed_fast.convert.files import TensorFile


class Payload:
    """Unpickled without care, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")  # a builtin, as the common attacks are


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_not_run(official_folder, tmp_path, form):
    ran, hostile = tmp_path / "ran", official_folder / "seed_quantizer.pt"
    content = {"query_tokens": torch.zeros(1), "x": Payload(ran)}
    if form == "plain pickle":
        hostile.write_bytes(pickle.dumps(content["x"]))
    else:
        torch.save(content, hostile, _use_new_zipfile_serialization=form == "zip")
    wanted = "more" if form == "plain pickle" else r"\w*io\.open"
    with pytest.raises(CheckpointError, match=rf"seed_quantizer\.pt: refused: its pickle wants {wanted}, .* nothing"):
        SeedTokenizer.from_pretrained(official_folder)
    assert not ran.exists()
    with pytest.raises(CheckpointError, match="refused"):
        convert(official_folder, tmp_path / "out")
    assert not ran.exists()
    assert not (tmp_path / "out").exists()
    opened = (
        pickle.loads(hostile.read_bytes()) if form == "plain pickle" else torch.load(hostile, weights_only=False)["x"]
    )
    opened.close()
    assert ran.exists(), "the payload must be one that works, or this test shows nothing"


@pytest.mark.parametrize("name", ["seed_quantizer.pt", "eva_vit_g.pth"])
@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02", b"just a text file\n", b"<html>404</html>", b"\x00" * 64])
def test_a_file_that_is_no_checkpoint_is_named(official_folder, name, content):
    (official_folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: must be a whole PyTorch checkpoint"):
        SeedTokenizer.from_pretrained(official_folder)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 2020000000\n"
INSTEAD = [
    (LFS, r"a Git LFS pointer: the file itself \(2020000000 bytes\) was not downloaded; `git lfs pull` gets it"),
    (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "an HTML page, as a server sends"),
    (b"<html>404</html>", "an HTML page, as a server sends"),
    (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an HTML page, as a server sends"),
    (b"", "an empty file"),
    (b"\x1f\x8b\x08\x00 and more", "a file packed with gzip; unpack it"),
]


@pytest.mark.parametrize(("content", "what"), [*INSTEAD, (b"Entry not found", "a text file: 'Entry not found'")])
@pytest.mark.parametrize("name", ["seed_quantizer.pt", "eva_vit_g.pth"])
def test_an_error_says_what_was_downloaded_instead_of_weights(official_folder, name, content, what):
    (official_folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: must be a whole PyTorch checkpoint, got {what}"):
        SeedTokenizer.from_pretrained(official_folder)


@pytest.mark.parametrize(("content", "what"), INSTEAD)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_error_says_what_was_downloaded_instead_of_our_files(own_folder, name, content, what):
    (own_folder / name).write_bytes(content)
    expected = "not a JSON file: " if name == "config.json" else "must be a whole .safetensors file, got "
    with pytest.raises(ValueError, match=rf"{name}: {expected}{what}"):
        SeedTokenizer.from_pretrained(own_folder)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_is_read_as_what_it_is_whatever_its_suffix(tmp_path, suffix):
    tensors = {"a": torch.arange(6.0).reshape(2, 3)}
    save_file(tensors, tmp_path / f"one{suffix}")
    torch.save(tensors, tmp_path / f"two{suffix}")
    for name in ("one", "two"):
        ((key, tensor),) = TensorFile(tmp_path / f"{name}{suffix}").read(["a"])
        assert key == "a"
        assert torch.equal(tensor, tensors["a"])


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_truncated_checkpoint_is_named(official_folder, kept, is_zip):
    path = official_folder / "seed_quantizer.pt"
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=is_zip)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CheckpointError, match=r"seed_quantizer\.pt: must be a whole PyTorch checkpoint"):
        SeedTokenizer.from_pretrained(official_folder)


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"a": 1}, {}, {"model": {"a": "b"}}, torch.zeros(3)])
def test_a_checkpoint_without_a_dict_of_tensors_is_named(official_folder, content):
    torch.save(content, official_folder / "seed_quantizer.pt")
    with pytest.raises(CheckpointError, match=r"seed_quantizer\.pt: must hold a dict of tensors, got"):
        SeedTokenizer.from_pretrained(official_folder)


def test_a_checkpoint_of_something_else_is_named(official_folder):
    (official_folder / "config.json").unlink()
    torch.save({"resnet.conv1": torch.zeros(3)}, official_folder / "seed_quantizer.pt")
    with pytest.raises(CheckpointError, match=r"seed_quantizer\.pt: must hold a SEED head .*, got resnet"):
        SeedTokenizer.from_pretrained(official_folder)


@pytest.fixture
def own_folder(official_folder, tmp_path):
    return convert(official_folder, tmp_path / "ours")


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_safetensors_file_is_named(own_folder, kept):
    path = own_folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: must be a whole \.safetensors file"):
        SeedTokenizer.from_pretrained(own_folder)


def test_a_config_json_of_another_model_is_named(own_folder):
    path = own_folder / "config.json"
    path.write_text(path.read_text().replace('"codebook_size": 64', '"codebook_size": 65'))
    message = r"model\.safetensors: quantizer\.codebook must be \[65, 12\] for its config\.json, got \[64, 12\]"
    with pytest.raises(CheckpointError, match=message):
        SeedTokenizer.from_pretrained(own_folder)


@pytest.mark.parametrize(("old", "new"), [('"codebook_size"', '"codebok_size"'), ("{", "{{"), ("64", '"64"')])
def test_a_damaged_config_json_is_named(own_folder, old, new):
    path = own_folder / "config.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises((ValueError, TypeError), match=r"config\.json"):
        SeedTokenizer.from_pretrained(own_folder)


def test_a_missing_config_json_is_named(own_folder):
    (own_folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        SeedTokenizer.from_pretrained(own_folder)


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    """One small checkpoint in each foreign format, as bytes."""
    folder = tmp_path_factory.mktemp("small")
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16)}
    torch.save(tensors, folder / "zip.pt")
    torch.save(tensors, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    return folder, [(folder / name).read_bytes() for name in ("zip.pt", "legacy.pt")]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_a_checkpoint_error_or_harmless(small_files, data):
    folder, contents = small_files
    content = bytearray(data.draw(st.sampled_from(contents)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "damaged.pt"
    path.write_bytes(content)
    try:
        file = TensorFile(path)
        list(file.read(file.entries))
    except CheckpointError as error:
        if str(path) not in str(error):
            raise


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_header_whose_length_begins_like_a_pickle_is_no_pickle(tmp_path, suffix):
    path, tensors = tmp_path / f"one{suffix}", {"a": torch.arange(3.0)}
    for padding in range(0, 257, 8):  # headers come in lengths of 8
        save_file(tensors, path, metadata={"about": "x" * padding})
        if path.read_bytes()[:1] == pickle.PROTO:
            break
    assert path.read_bytes()[:1] == pickle.PROTO
    ((_, tensor),) = TensorFile(path).read(["a"])
    assert torch.equal(tensor, tensors["a"])
