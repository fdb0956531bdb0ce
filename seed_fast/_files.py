"""Write files and folders so that they are complete or absent, one process at a time, with errors that name them.

`replacing` writes one file, `replace_folder_files` several; every other atomic write in the package goes through them
or through `publish` and `publish_folder`. What a killed process leaves can be told by its name, and the next one that
writes there removes it.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

STAGING = ".partial"  # inside a folder: the folder in which its next files are written
_UNFINISHED = ".seed-fast.tmp"  # end of the name of a file that `replacing` has not finished
_DAY = 86400.0  # s
_swept: set[Path] = set()  # folders where this process has looked for leftovers


class OutputError(ValueError):
    """Raised when an output exists, belongs to another run, or is in use; the message starts with its path."""


class OtherRun(OutputError):
    """Raised when an output holds what another run has written, which can be replaced but not continued."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn every failure to write within the context into an `OSError` that names `path`.

    The system doesn't name the file when a disk is full, and safetensors and torch raise errors of their own.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        code = _system_error_in(error)
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


def _system_error_in(error: BaseException) -> int | None:
    """Return the errno behind an error of safetensors (it is in the text) or torch (in its context), or None."""
    if type(error).__name__ == "SafetensorError":
        code = re.search(r"os error (\d+)", str(error))
        return int(code[1]) if code else None
    behind = error.__context__ if isinstance(error, RuntimeError) else None
    return behind.errno if isinstance(behind, OSError) else None


def open_locked(path: Path, *, wait: bool = False) -> BinaryIO:
    """Open a file for appending and lock it for this process; it is made if it is missing.

    Closing the file, or the end of the process, releases the lock.

    Args:
        path: the file.
        wait: wait until another process releases the lock; otherwise that is an error.

    Raises:
        OutputError: another process holds the lock.
    """
    while True:
        with writing(path):
            file = open(path, "a+b", buffering=0)  # noqa: SIM115 - open until the caller closes it
        try:
            _lock(file.fileno(), wait)
            if _is_at(file.fileno(), path):
                return file
        except BlockingIOError:
            file.close()
            raise OutputError(f"{path}: another process is writing it") from None
        file.close()  # renamed or removed by its owner between opening and locking: try again


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for this process while the context lasts; it is made if it is missing.

    The lock keeps out other calls of this function alone.

    Raises:
        OutputError: another process holds the lock.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "must be a folder, got a file", str(folder))
    descriptor = _lock_folder(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock_folder(folder: Path) -> int | None:
    """Return a descriptor that locks the folder while it is open; None where folders can't be opened (Windows)."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except PermissionError:
            if os.name == "nt":
                return None
            raise
        try:
            _lock(descriptor, wait=False)
        except BlockingIOError:
            os.close(descriptor)
            raise OutputError(f"{folder}: another process is writing it") from None
        if _is_at(descriptor, folder):
            return descriptor
        os.close(descriptor)  # renamed or removed by its owner between opening and locking: try again


def write_beside(path: Path, content: bytes) -> None:
    """Write a file so that its name never stands for half of it; see `replacing`."""
    with replacing(path) as file:
        write_all(file, content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield an unbuffered file that takes the place of `path` when the block ends, and is on the disk by then.

    It is written beside `path` under a name of its own, so that processes which write the same output don't meet; the
    last one wins. If the block raises, `path` stays as it was and nothing is left beside it. What killed processes have
    left in this folder is removed.

    Raises:
        OSError: it can't be written; names `path`.
    """
    _sweep(path.parent)
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    with writing(path):
        file = open_locked(beside, wait=True)
        try:
            yield file
            publish(file, beside, path)
        except BaseException:
            file.close()  # before it is removed: Windows removes no open file
            beside.unlink(missing_ok=True)
            raise


def publish(file: BinaryIO, beside: Path, path: Path) -> None:
    """Force a file that `open_locked` opened to the disk, give it its final name, and close it."""
    with writing(path):
        os.fsync(file.fileno())
        rename_locked(file, beside, path)


def publish_folder(staging: Path, path: Path, *, overwrite: bool = False) -> None:
    """Force a folder and all that is in it to the disk, and give it its final name.

    Args:
        staging: the folder.
        path: its name; must be free, unless `overwrite` says that a folder there is to be removed.
    """
    for each in [*staging.rglob("*"), staging]:
        to_disk(each)
    if overwrite and path.exists():
        remove_folder(path)
    os.rename(staging, path)
    to_disk(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder: its name first, so that a kill leaves no half of it there, but a hidden `.NAME.old`."""
    doomed = path.with_name(f".{path.name}.old")
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def _sweep(folder: Path) -> None:
    """Remove what killed processes have left of `replacing` in a folder; a process looks once into each folder."""
    folder = folder.absolute()
    if folder in _swept:
        return
    _swept.add(folder)
    for left in folder.glob(f"*{_UNFINISHED}"):
        try:
            file = open(left, "ab", buffering=0)  # noqa: SIM115 - closed below
        except OSError:  # finished meanwhile, or not ours to touch
            continue
        with file:
            try:
                # A file system without locks can't tell whose it is: there, one of today may still be written.
                dead = _lock(file.fileno(), wait=False) or time.time() - left.stat().st_mtime > _DAY
                if dead and _is_at(file.fileno(), left):
                    left.unlink()
            except OSError:  # another process is writing it, or has just finished
                continue


def rename_locked(file: BinaryIO, path: Path, target: Path) -> None:
    """Rename a file that `open_locked` opened, then close it, so that no other process can lock it in between."""
    if os.name == "nt":  # which renames no open file
        file.close()
    os.replace(path, target)
    file.close()


class OutputLock:
    """Lock of this process on an output of several files; the end of the process releases it.

    Args:
        path: the lock file, which exists while the lock is held.
        output: the output, for the message.

    Raises:
        OutputError: another process writes `output`.
    """

    def __init__(self, path: Path, output: Path) -> None:
        self._path = path
        try:
            self._file = open_locked(path)
        except OutputError:
            raise OutputError(f"{output}: another process is writing it") from None

    def release(self) -> None:
        """Release the lock and remove its file."""
        if self._file.closed:
            return
        if os.name == "nt":
            self._file.close()
        self._path.unlink(missing_ok=True)
        self._file.close()


def write_all(file: BinaryIO, content: bytes | memoryview) -> None:
    """Write all of `content` to an unbuffered file, whose `write` may take a part of it."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


@contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """Make an empty, locked folder at `path`, and remove what a killed process has left in it.

    At the end the folder is removed, unless it has been renamed by then.

    Raises:
        OutputError: another process is using it.
    """
    with locked_folder(path):
        own = os.stat(path)
        for left in path.iterdir():
            _remove(left)
        try:
            yield path
        finally:
            if path.exists() and os.path.samestat(own, os.stat(path)):
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def replace_folder_files(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; when the block ends, what is in it becomes the content of `folder`.

    A folder that is there keeps its other files, and gets the new ones one by one in the order of their names. A folder
    that is missing appears whole. If something is raised, `folder` stays as it was, or missing.

    Raises:
        NotADirectoryError: `folder` is a file.
        OutputError: another process does the same.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: must be a folder, got a file")
    beside = folder / STAGING if folder.exists() else folder.with_name(f".{folder.name}{STAGING}")
    with writing(folder), staging_folder(beside) as staging:
        yield staging
        if staging.parent != folder:
            publish_folder(staging, folder)
            return
        for path in sorted(path for path in staging.rglob("*") if path.is_file()):
            to_disk(path)
            target = folder / path.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have staged in a folder that the caller has locked."""
    for path in folder.glob(STAGING + "*"):
        _remove(path)


def to_disk(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    if os.name == "nt":  # which flushes nothing that is open for reading only
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _is_at(descriptor: int, path: Path) -> bool:
    """Return True if the open file or folder still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(descriptor: int, wait: bool) -> bool:
    """Lock an open file or folder. Returns True, or False where there are no locks: Windows, some network systems.

    Raises:
        BlockingIOError: another process has it, and `wait` is False.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:  # a network file system without locks
        return False
    return True
