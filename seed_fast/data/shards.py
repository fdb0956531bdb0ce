"""Inputs to tokenise: files, folders, globs and WebDataset tar shards as one ordered stream of entries.

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
from typing import TYPE_CHECKING, Any, NamedTuple

from seed_fast import limits
from seed_fast.data.image_processor import ImageError, read_bytes

if TYPE_CHECKING:
    from typing_extensions import Self

IMAGE_SUFFIXES = tuple(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "avif", "gif", "bmp", "dib", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "pfm", "jp2", "j2k", "ico", "qoi"),
    )
)
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_SIGNATURES = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ": "lzma", b"\x28\xb5\x2f\xfd": "zstandard"}
_EXTENSIONS = (b"L", b"K", b"x", b"g", b"X")  # headers that tarfile reads at once: long names and PAX records
_MAX_HEADER = 1 << 20  # their bytes
_PIECE = 1 << 20


class Entry(NamedTuple):
    """The place of one image: all that a worker needs to read it."""

    path: str  # identity, as written to the output
    file: str  # what to open
    offset: int = 0  # bytes into `file`
    size: int | None = None  # bytes; None: the whole file
    data: bytes | None = None  # content, where it can't be reached by offset (compressed shards, sparse members)
    problem: str | None = None  # why it can't be read


class ShardError(ValueError):
    """A tar shard that can't be read to its end. The message starts with the shard's path."""


def read_entry(entry: Entry) -> bytes:
    """Read the bytes of an image file.

    Raises:
        ImageError: it can't be read.
    """
    if entry.problem is not None:
        raise ImageError(f"{entry.path}: {entry.problem}")
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
    """Yield every image of `inputs`, lazily and in a fixed order.

    Args:
        inputs: paths of image files, folders (walked to the end, links followed), tar shards, globs (`**` crosses
            folders) and brace lists (`shard-{000..099}.tar`). A file given by name is taken whatever its suffix; in
            folders, globs and shards those of `IMAGE_SUFFIXES` are, and tar shards are opened wherever they are met.
        on_problem: called with one line for each input that can't be listed (missing or torn shard, unreadable folder,
            a glob without a match); the listing goes on after it. Missing image files are entries: reading them tells.

    Yields:
        Entries; a path occurs as often as the inputs reach it.
    """
    for path in list_files(inputs, on_problem):
        yield from _file_or_shard(path, on_problem)


def list_files(inputs: Iterable[str], on_problem: Callable[[str], None]) -> Iterator[str]:
    """Yield the paths of the image files and tar shards of `inputs`, in the order of `list_entries`; none is opened."""
    for source in inputs:
        yield from _files_of(source, on_problem)


def names_anything(source: str) -> bool:
    """Return True if an input names an existing file or folder: by its path, a brace list or a glob."""
    if os.path.lexists(source):
        return True
    if "{" in source:
        from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

        try:
            if any(names_anything(expanded) for expanded in braceexpand(source) if expanded != source):
                return True
        except UnbalancedBracesError:
            pass
    return glob.has_magic(source) and next(glob.iglob(source, recursive=True), None) is not None


def _files_of(source: str, on_problem: Callable[[str], None]) -> Iterator[str]:
    if os.path.isdir(source):
        yield from walk(source, IMAGE_SUFFIXES + SHARD_SUFFIXES, on_problem)
    elif os.path.lexists(source):
        yield source
    elif "{" in source:
        from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

        try:
            sources = list(braceexpand(source))
        except UnbalancedBracesError:
            sources = [source]
        for expanded in sources:
            if expanded == source:  # braces that are no list
                yield source
            else:
                yield from _files_of(expanded, on_problem)
    elif glob.has_magic(source):
        yield from _glob(source, on_problem)
    else:
        yield source


def _glob(pattern: str, on_problem: Callable[[str], None]) -> Iterator[str]:
    matches = sorted(glob.iglob(pattern, recursive=True))
    if not matches:
        on_problem(f"{pattern}: no file matches")
    for match in matches:
        if os.path.isdir(match):
            if "**" not in pattern:  # ** has matched what is inside as well
                yield from walk(match, IMAGE_SUFFIXES + SHARD_SUFFIXES, on_problem)
        elif match.lower().endswith(IMAGE_SUFFIXES + SHARD_SUFFIXES):
            yield match


def walk(
    folder: str,
    suffixes: tuple[str, ...],
    on_problem: Callable[[str], None],
    parents: tuple[tuple[int, int], ...] = (),
) -> Iterator[str]:
    """Yield the files below a folder whose names end in one of the suffixes, links followed, sorted by full path.

    Args:
        folder: the folder to walk.
        suffixes: in lower case; case is ignored. A link that leads nowhere counts as a file of its own name.
        on_problem: called with one line for each folder that can't be listed, and each link without a suffix, which may
            have been a folder, that leads nowhere.
        parents: the folders above it: a link must not make a circle.
    """
    try:
        status = os.stat(folder)
        with os.scandir(folder) as children:
            # The slash makes the order that of the full paths: "a-b.jpg" before "a/b.jpg".
            names = sorted(child.name + "/" if _is_folder(child) else child.name for child in children)
    except OSError as error:
        on_problem(f"{folder}: the folder cannot be listed: {error.strerror or error}")
        return
    this = (status.st_dev, status.st_ino)
    if this in parents:
        return
    for name in names:
        path = os.path.join(folder, name.rstrip("/"))
        if name.endswith("/"):
            yield from walk(path, suffixes, on_problem, (*parents, this))
        elif name.lower().endswith(suffixes):
            yield path
        elif "." not in name and os.path.islink(path) and not os.path.exists(path):
            on_problem(f"{path}: a link that leads nowhere")


def _is_folder(child: os.DirEntry[str]) -> bool:
    try:
        return child.is_dir()
    except OSError:  # a link to itself, or into a folder that may not be looked into
        return False


def _file_or_shard(path: str, on_problem: Callable[[str], None]) -> Iterator[Entry]:
    if not path.lower().endswith(SHARD_SUFFIXES):
        yield Entry(path, path)
        return
    try:
        yield from shard_members(path)
    except ShardError as error:
        on_problem(str(error))


def compression_of(path: str) -> str | None:
    """Return the name of the module that unpacks a file; None if the file isn't compressed.

    Raises:
        OSError: the file can't be read.
    """
    with open(path, "rb") as file:
        head = file.read(6)
    return next((name for signature, name in _SIGNATURES.items() if head.startswith(signature)), None)


def shard_members(path: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> Iterator[Entry]:
    """Yield the files of a tar shard with one of the suffixes, in archive order; concatenated archives are read as one.

    A member that can't be used by itself (a link, or too large to be held) has a `problem`.

    Raises:
        ShardError: the shard is missing or torn. What precedes a tear has been yielded by then.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ShardError(f"{path}: expected a tar shard, got something that is no regular file")
        compression = compression_of(path)
        with _open(path, compression) as file:
            yield from _members(path, file, suffixes, is_plain=compression is None)
    except FileNotFoundError:
        raise ShardError(f"{path}: no such shard") from None
    except OSError as error:
        raise ShardError(f"{path}: cannot be read: {error.strerror or error}") from error


def _open(path: str, compression: str | None) -> Any:
    """Open a shard as a file of its unpacked bytes that can be read forwards."""
    if compression is None:
        return open(path, "rb")
    if compression == "zstandard":
        try:
            import zstandard
        except ImportError:
            raise ShardError(
                f"{path}: reading it needs zstandard, which isn't installed: pip install 'seed_fast[zstd]'"
            ) from None
        unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27)  # what zstd --long asks for
        return _Forward(unpacker.stream_reader(open(path, "rb"), read_across_frames=True, closefd=True))
    import bz2
    import gzip
    import lzma

    openers: dict[str, Callable[[str, str], Any]] = {"gzip": gzip.open, "bz2": bz2.open, "lzma": lzma.open}
    return _Forward(openers[compression](path, "rb"))


class _Forward:
    """A compressed file as tarfile reads it: forwards, and back by less than the last piece that was read."""

    def __init__(self, file: Any) -> None:
        self._file, self._held, self._last, self._at = file, b"", b"", 0

    def __enter__(self) -> _Forward:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        pieces = [self._held[:size]]
        self._held = self._held[size:]
        missing = size - len(pieces[0])
        while missing > 0 and (piece := self._file.read(min(missing, _PIECE))):
            pieces.append(piece)
            missing -= len(piece)
        self._last = b"".join(pieces)
        self._at += len(self._last)
        return self._last

    def seek(self, position: int) -> int:
        if position < self._at:
            back = self._at - position
            if back > len(self._last):
                raise tarfile.ReadError(f"byte {position} of a packed shard can't be gone back to")
            self._held, self._last = self._last[-back:] + self._held, self._last[:-back]
            self._at = position
        while self._at < position and self.read(min(position - self._at, _PIECE)):
            pass
        return self._at


def _members(path: str, file: Any, suffixes: tuple[str, ...], *, is_plain: bool) -> Iterator[Entry]:
    """Yield the members of all archives in a file: `cat a.tar b.tar` puts b behind the end marker of a."""
    whole, start = 0, 0
    size = os.fstat(file.fileno()).st_size if is_plain else None
    while True:
        # One archive per turn: its members, then the place where the next one begins.
        first = whole
        try:
            file.seek(start)
            archive = tarfile.TarFile(fileobj=file, tarinfo=_StrictTarInfo)
            while (member := archive.next()) is not None:
                if size is not None and _end_of(archive, member) > size:
                    raise ShardError(f"{path}: the shard is cut off inside {member.name} (after {whole} whole members)")
                if member.name.lower().endswith(suffixes) and not member.isdir():
                    yield _member(path, archive, member, is_plain=is_plain)
                elif not is_plain and member.size > limits.MAX_FILE_BYTES:
                    raise ShardError(f"{path}/{member.name}: {_too_large(member.size, limits.MAX_FILE_BYTES)}")
                if member.size < 0:  # a PAX record can say so
                    raise tarfile.ReadError(f"{member.name} of {member.size} bytes")
                whole += 1
                setattr(archive, "members", [])  # noqa: B010 - tarfile would keep all that it has seen; not in its stubs
            following = _next_archive(file)
        except ShardError:
            raise
        except Exception as error:  # tarfile and the decompressors raise many kinds on damaged input
            if start and whole == first:
                raise ShardError(f"{path}: data that is no tar follows the end marker, at byte {start}") from error
            reason = str(error) or type(error).__name__
            raise ShardError(f"{path}: the shard is damaged after {whole} whole members: {reason}") from error
        if following is None:
            return
        start = following


def _next_archive(file: Any) -> int | None:
    """Return where the next archive begins behind the zeros that follow; None if only zeros are there."""
    position = file.tell()
    while piece := file.read(_PIECE):
        zeros = len(piece) - len(piece.lstrip(b"\0"))
        if zeros < len(piece):
            return position + zeros - (position + zeros) % tarfile.BLOCKSIZE
        position += len(piece)
    return None


def _end_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    """Return the byte at which a member ends in the file; the size of a sparse one is that of its expanded content."""
    if not member.isreg():
        return 0
    return archive.offset if member.issparse() else member.offset_data + member.size


def _member(path: str, archive: tarfile.TarFile, member: tarfile.TarInfo, *, is_plain: bool) -> Entry:
    name = f"{path}/{member.name}"
    if not member.isreg():
        kind = f"a link to {member.linkname}" if member.islnk() or member.issym() else "no file"
        return Entry(name, path, problem=f"expected a file in the shard, got {kind}")
    if is_plain and not member.issparse():
        return Entry(name, path, member.offset_data, member.size)
    if member.size > limits.MAX_MEMBER_BYTES:
        problem = _too_large(member.size, limits.MAX_MEMBER_BYTES)
        if is_plain:
            return Entry(name, path, problem=problem)
        raise ShardError(f"{name}: {problem}")  # what follows could only be reached by unpacking it
    content = archive.extractfile(member)
    return Entry(name, path, data=content.read() if content is not None else b"")


def _too_large(size: int, limit: int) -> str:
    return f"expected at most {limit} bytes when unpacked, got {size}"


class _StrictTarInfo(tarfile.TarInfo):
    """Reads headers as tarfile does, but raises where tarfile stops in silence: at damage, or without an end marker."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from None

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _EXTENSIONS and header.size > _MAX_HEADER):
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


class Split(NamedTuple):
    """One part of a job that is divided among `count` processes: the entries at positions index, index + count, ..."""

    index: int  # type: ignore[assignment]  # hides a method of tuple that nobody calls
    count: int  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Split:
        """Parse "i/n" with 0 <= i < n.

        Raises:
            ValueError: it is none.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ValueError(f"shard must be i/n with 0 <= i < n, such as 0/4, got {text!r}")
        return cls(int(index), int(count))

    @classmethod
    def of_environment(cls) -> Split | None:
        """Return the part that torchrun's RANK and WORLD_SIZE give this process; None if it is alone.

        Raises:
            ValueError: the two variables don't fit together.
        """
        world = os.environ.get("WORLD_SIZE", "1")
        return None if world == "1" else cls.parse(f"{os.environ.get('RANK', '')}/{world}")

    def take(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Yield the entries of this part."""
        for position, entry in enumerate(entries):
            if position % self.count == self.index:
                yield entry


WHOLE = Split(0, 1)
