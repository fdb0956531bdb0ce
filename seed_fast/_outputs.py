"""Resolve where a command writes: links are followed, "-" is standard output, pipes and devices are refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

STDOUT = Path("-")
_STDOUT_NAMES = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def output_file(path: Path, must: str = "must be a file name") -> Path:
    """Return the file that `path` stands for; a link is followed, so that it stays and its target is written.

    Args:
        path: path as the user gave it.
        must: the expectation in the error message, between the path and what was found.

    Returns:
        The file's path, which may not exist yet; `STDOUT` for "-" and the other names of standard output.

    Raises:
        ValueError: the path is a pipe, a device, a socket or a folder, which renaming a file into its place would
            destroy; or a link that leads to itself; or this process may not write into its folder.
    """
    if str(path) in _STDOUT_NAMES:
        return STDOUT
    path, mode = _followed(path)
    if mode is not None and stat.S_ISDIR(mode):
        raise ValueError(f"{path}: {must}, got a folder")
    if mode is not None and not stat.S_ISREG(mode):
        raise ValueError(f"{path}: {must}, got {_kind(mode)} (standard output is -)")
    _check_writable(path, path.parent)
    return path


def output_folder(path: Path, must: str = "must be a folder") -> Path:
    """Return the folder that `path` stands for, links followed; it may not exist yet. `must` as in `output_file`.

    Raises:
        ValueError: the path is no folder, or a link that leads to itself; or this process may not write into it.
    """
    path, mode = _followed(path)
    if mode is not None and not stat.S_ISDIR(mode):
        raise ValueError(f"{path}: {must}, got {_kind(mode)}")
    _check_writable(path, path)
    return path


def _followed(path: Path) -> tuple[Path, int | None]:
    """Return the target of a link, or the path as it is; and the mode of what is there, None for nothing."""
    try:
        if path.is_symlink():
            path = Path(os.path.realpath(path))
        return path, os.stat(path).st_mode
    except FileNotFoundError:
        return path, None
    except (OSError, ValueError) as error:  # a link to itself, a part that is no folder, a null byte
        raise ValueError(f"{path}: can't be written: {getattr(error, 'strerror', None) or error}") from None


def _check_writable(path: Path, folder: Path) -> None:
    """Refuse an output that can't be written into its folder, or into the nearest folder that isn't missing."""
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise ValueError(f"{path}: can't be written: no permission to write into {folder}")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a file")
