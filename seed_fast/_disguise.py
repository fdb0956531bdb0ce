"""Recognise files that aren't what their name says because a download went wrong, and describe them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_LFS = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error")
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"Rar!": "RAR"}


def disguised(path: Path, *, text: bool = False) -> str | None:
    """Describe a file that should hold weights (or, with `text`, a config or a vocabulary), but is something else.

    Returns:
        A phrase such as "a Git LFS pointer: ...", to follow "got" in an error; None if nothing known is recognised.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError:
        return None
    if not head.strip():
        return "an empty file" if not head else None
    if head.startswith(_LFS):
        size = next((line[5:].decode("ascii", "replace") for line in head.splitlines() if line[:5] == b"size "), "?")
        return f"a Git LFS pointer: the file itself ({size} bytes) was not downloaded; `git lfs pull` gets it"
    if head.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith(_PAGES):
        return "an HTML page, as a server sends in place of a file that is missing or needs a login; download it again"
    for mark, name in _PACKED.items():
        if head.startswith(mark):
            return f"a file packed with {name}; unpack it"
    if text:
        return None
    if len(head) < 1024 and all(32 <= byte < 127 or byte in b"\r\n\t" for byte in head):
        return f"a text file: {' '.join(head.decode('ascii').split())[:80]!r}"
    return None


def refuse_disguised(folder: Path, patterns: Iterable[str]) -> None:
    """Check the files of a folder before a library reads them, because its own errors would be unclear.

    Raises:
        ValueError: a file isn't what its name says; the message names it.
    """
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            is_weights = path.suffix in (".safetensors", ".bin", ".pt", ".pth")
            what = disguised(path, text=not is_weights)
            if what is not None:
                raise ValueError(f"{path}: must be {'weights' if is_weights else 'a file of a model'}, got {what}")
