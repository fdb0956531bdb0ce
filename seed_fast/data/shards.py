"""What to tokenise: files, folders, globs and WebDataset tar shards as one ordered stream of entries.

The stream is lazy and its order is fixed by the inputs and the file system's content alone: inputs in the order given,
folders walked by name, tar members in archive order. So every rank of a job sees the same positions and takes its own,
and a resumed run meets the entries in the order of the first. In memory are the names of one folder and of those above
it, and the matches of one glob; never the entries.

The identity of an image is its `path`: the file's path as reached from the input (`photos/cats/1.jpg` for input
`photos`), and for a member of a shard the shard's path, a slash and the member's name (`train/000.tar/0001.jpg`).
"""

from __future__ import annotations

import glob
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from seed_fast.data.image_processor import MAX_FILE_BYTES, ImageError, read_bytes

IMAGE_SUFFIXES = tuple(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "avif", "gif", "bmp", "dib", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "pfm", "jp2", "j2k", "ico", "qoi"),
    )
)
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class Entry(NamedTuple):
    """One image that a worker can read on its own."""

    path: str  # identity, as written to the output
    file: str  # what to open
    offset: int = 0  # bytes into `file`
    size: int | None = None  # bytes; None: the whole file
    data: bytes | None = None  # content, where it can't be reached by offset (compressed shards)


class ShardError(ValueError):
    """A tar shard that can't be read to its end. The message starts with the shard's path."""


def read_entry(entry: Entry) -> bytes:
    """The bytes of an image file.

    Raises:
        ImageError: it can't be read.
    """
    if entry.data is not None:
        return entry.data
    if entry.size is None:
        return read_bytes(entry.file, entry.path)
    try:
        with open(entry.file, "rb") as file:
            file.seek(entry.offset)
            data = file.read(entry.size)
    except OSError as error:
        raise ImageError(f"{entry.path}: cannot be read: {error.strerror or error}") from error
    if len(data) != entry.size:
        raise ImageError(f"{entry.path}: expected {entry.size} bytes in the shard, got {len(data)}")
    return data


def list_entries(inputs: Iterable[str], on_problem: Callable[[str], None]) -> Iterator[Entry]:
    """Every image of `inputs`, lazily and in a fixed order.

    Args:
        inputs: paths of image files, folders (walked to the end, links followed), tar shards, globs (`**` crosses
            folders) and brace lists (`shard-{000..099}.tar`). A file given by name is taken whatever its suffix; in
            folders, globs and shards those of `IMAGE_SUFFIXES` are, and tar shards are opened wherever they are met.
        on_problem: called with one line for each input that can't be listed (missing or torn shard, unreadable folder,
            a glob without a match); the listing goes on after it. Missing image files are entries: reading them tells.

    Yields:
        Entries; a path occurs as often as the inputs reach it.
    """
    for source in inputs:
        yield from _entries_of(source, on_problem)


def _entries_of(source: str, on_problem: Callable[[str], None]) -> Iterator[Entry]:
    if os.path.isdir(source):
        yield from _walk(source, (), on_problem)
    elif os.path.lexists(source):
        yield from _file_or_shard(source, on_problem)
    elif "{" in source:
        from braceexpand import UnbalancedBracesError, braceexpand

        try:
            sources = list(braceexpand(source))
        except UnbalancedBracesError:
            sources = [source]
        for expanded in sources:
            if expanded == source:  # braces that are no list
                yield from _file_or_shard(source, on_problem)
            else:
                yield from _entries_of(expanded, on_problem)
    elif glob.has_magic(source):
        yield from _glob(source, on_problem)
    else:
        yield from _file_or_shard(source, on_problem)


def _glob(pattern: str, on_problem: Callable[[str], None]) -> Iterator[Entry]:
    matches = sorted(glob.iglob(pattern, recursive=True))
    if not matches:
        on_problem(f"{pattern}: no file matches")
    for match in matches:
        if os.path.isdir(match):
            if "**" not in pattern:  # ** has matched what is inside as well
                yield from _walk(match, (), on_problem)
        elif match.lower().endswith(IMAGE_SUFFIXES + SHARD_SUFFIXES):
            yield from _file_or_shard(match, on_problem)


def _walk(folder: str, parents: tuple[tuple[int, int], ...], on_problem: Callable[[str], None]) -> Iterator[Entry]:
    """Images below a folder, sorted by full path; `parents` are the folders above it: a link must not make a circle."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as children:
            # The slash makes the order that of the full paths: "a-b.jpg" before "a/b.jpg".
            names = sorted(child.name + "/" if child.is_dir() else child.name for child in children)
    except OSError as error:
        on_problem(f"{folder}: the folder cannot be listed: {error.strerror or error}")
        return
    this = (status.st_dev, status.st_ino)
    if this in parents:
        return
    for name in names:
        path = os.path.join(folder, name.rstrip("/"))
        if name.endswith("/"):
            yield from _walk(path, (*parents, this), on_problem)
        elif name.lower().endswith(IMAGE_SUFFIXES + SHARD_SUFFIXES):
            yield from _file_or_shard(path, on_problem)


def _file_or_shard(path: str, on_problem: Callable[[str], None]) -> Iterator[Entry]:
    if not path.lower().endswith(SHARD_SUFFIXES):
        yield Entry(path, path)
        return
    try:
        yield from shard_members(path)
    except ShardError as error:
        on_problem(str(error))


def shard_members(path: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> Iterator[Entry]:
    """Files of a tar shard whose names end so, in archive order.

    Raises:
        ShardError: the shard is missing or torn. What precedes a tear has been yielded by then.
    """
    whole = 0
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ShardError(f"{path}: expected a tar shard, got something that is no regular file")
        with open(path, "rb") as file:
            compressed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))
        with tarfile.open(path, "r|*" if compressed else "r:", tarinfo=_StrictTarInfo) as archive:
            while (member := archive.next()) is not None:
                if not compressed and member.isreg() and member.offset_data + member.size > status.st_size:
                    raise ShardError(f"{path}: the shard is cut off inside {member.name} (after {whole} whole members)")
                if member.isreg() and member.name.lower().endswith(suffixes):
                    yield _member(path, archive, member, compressed)
                whole += 1
                archive.members = []  # tarfile keeps all it has seen
    except ShardError:
        raise
    except FileNotFoundError:
        raise ShardError(f"{path}: no such shard") from None
    except Exception as error:  # tarfile and the decompressors raise many kinds on damaged input
        reason = str(error) or type(error).__name__
        raise ShardError(f"{path}: the shard is damaged after {whole} whole members: {reason}") from error


def _member(path: str, archive: tarfile.TarFile, member: tarfile.TarInfo, compressed: bool) -> Entry:
    name = f"{path}/{member.name}"
    if not compressed and not member.issparse():
        return Entry(name, path, member.offset_data, member.size)
    if member.size > MAX_FILE_BYTES:
        raise ShardError(f"{name}: expected at most {MAX_FILE_BYTES} bytes in a compressed shard, got {member.size}")
    content = archive.extractfile(member)
    return Entry(name, path, data=content.read() if content is not None else b"")


class _StrictTarInfo(tarfile.TarInfo):
    """Reads headers as tarfile does, but raises where tarfile stops in silence: at damage, or without an end marker."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from None


class Split(NamedTuple):
    """One part of a job that is divided among `count` processes: the entries at positions index, index + count, ..."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Split:
        """From "i/n" with 0 <= i < n.

        Raises:
            ValueError: it is none.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ValueError(f"shard must be i/n with 0 <= i < n, such as 0/4, got {text!r}")
        return cls(int(index), int(count))

    @classmethod
    def of_environment(cls) -> Split | None:
        """What torchrun asks for by RANK and WORLD_SIZE; None outside of it or with one process.

        Raises:
            ValueError: the two variables don't fit together.
        """
        world = os.environ.get("WORLD_SIZE", "1")
        return None if world == "1" else cls.parse(f"{os.environ.get('RANK', '')}/{world}")

    def take(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """This part of the entries."""
        for position, entry in enumerate(entries):
            if position % self.count == self.index:
                yield entry


WHOLE = Split(0, 1)
