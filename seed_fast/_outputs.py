"""Where a command writes: through links to what they lead to, to standard output, and never over what is no file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

STDOUT = Path("-")
_STDOUT_NAMES = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def output_file(path: Path, must: str = "must be a file name") -> Path:
    """The file that `path` stands for: a link is followed, so that it stays and its target is written.

    Args:
        path: as given.
        must: what an error says, between the path and what is there.

    Returns:
        `STDOUT` for "-" and the other names of standard output.

    Raises:
        ValueError: it is a pipe, a device, a socket or a folder, which renaming a file into its place would destroy; or
            a link that leads to itself.
    """
    if str(path) in _STDOUT_NAMES:
        return STDOUT
    path, mode = _followed(path)
    if mode is not None and stat.S_ISDIR(mode):
        raise ValueError(f"{path}: {must}, got a folder")
    if mode is not None and not stat.S_ISREG(mode):
        raise ValueError(f"{path}: {must}, got {_kind(mode)} (standard output is -)")
    return path


def output_folder(path: Path, must: str = "must be a folder") -> Path:
    """The folder that `path` stands for, links followed. It may be missing; `must` as for `output_file`.

    Raises:
        ValueError: it is something else, or a link that leads to itself.
    """
    path, mode = _followed(path)
    if mode is not None and not stat.S_ISDIR(mode):
        raise ValueError(f"{path}: {must}, got {_kind(mode)}")
    return path


def _followed(path: Path) -> tuple[Path, int | None]:
    """Where a link leads, or the path as it is; and the mode of what is there."""
    try:
        if path.is_symlink():
            path = Path(os.path.realpath(path))
        return path, os.stat(path).st_mode
    except FileNotFoundError:
        return path, None
    except (OSError, ValueError) as error:  # a link to itself, a part that is no folder, a null byte
        raise ValueError(f"{path}: can't be written: {getattr(error, 'strerror', None) or error}") from None


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a file")
