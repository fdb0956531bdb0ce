"""Read foreign text and JSON safely: byte order marks, undecodable bytes, endless lines, values too large to print."""

from __future__ import annotations

import codecs
import json
import os
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seed_fast import limits
from seed_fast._disguise import disguised

# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SURROGATES = "surrogatepass"


def encoding_of(head: bytes) -> str:
    """Return the encoding that the byte order mark in `head` stands for; "utf-8" without a mark."""
    return next((encoding for mark, encoding in _MARKS if head.startswith(mark)), "utf-8")


def decode_text(data: bytes) -> str:
    """Decode bytes in UTF-8, or in the encoding of their byte order mark, which is left out.

    Raises:
        ValueError: the bytes aren't valid in that encoding.
    """
    try:
        return data.decode(encoding_of(data))
    except UnicodeDecodeError as error:
        what = f"0x{data[error.start]:02x} at byte {error.start}"
        raise ValueError(f"expected text in {error.encoding.upper()}, got {what}") from None


def name_bytes(name: str) -> bytes:
    """Return the bytes of a name for hashing and storing, also for a file name that isn't valid UTF-8."""
    return name.encode("utf-8", "surrogatepass")


def parse_json(data: bytes | str) -> Any:
    """Parse a JSON text, which may begin with a byte order mark.

    Raises:
        ValueError: it isn't JSON, or nested deeper than Python reads. The message doesn't name the file.
    """
    try:
        return json.loads(decode_text(data) if isinstance(data, bytes) else data)
    except RecursionError:
        raise ValueError("nested too deep: brackets within brackets, thousands of levels") from None


def read_json(path: str | os.PathLike[str], limit: int = limits.MAX_CONFIG_BYTES) -> Any:
    """Read a JSON file and return its value.

    Raises:
        OSError: the file can't be read.
        ValueError: it has more than `limit` bytes, or isn't JSON. The message doesn't name the file.
    """
    size = os.stat(path).st_size
    if size > limit:
        raise ValueError(f"expected at most {limit} bytes of JSON, got {size}")
    return parse_json(Path(path).read_bytes())


def read_json_object(path: str | os.PathLike[str], *, fields: str = "") -> dict[str, Any]:
    """Return the object in a JSON file; `fields` says in an error what its fields are, such as "SeedConfig fields".

    Raises:
        OSError: it can't be read.
        ValueError: it is too large, not JSON, or another value than an object. The message names the file.
    """
    try:
        value = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file: {disguised(Path(path), text=True) or error}") from None
    if not isinstance(value, dict):
        of = f" of {fields}" if fields else ""
        raise ValueError(f"{path}: must hold a JSON object{of}, got {shown(value)}")
    return value


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, bytes without the line end) for each line of a text file, converted to UTF-8.

    Bytes that aren't valid UTF-8 stay as they are: the caller decodes each line, and names one that it can't decode.

    Raises:
        OSError: the file can't be read.
        ValueError: a line has more than `limits.MAX_LINE_BYTES`. The message doesn't name the file.
    """
    with open(path, "rb") as file:
        encoding = encoding_of(file.read(4))
    if encoding in ("utf-8", "utf-8-sig"):
        with open(path, "rb") as file:
            file.seek(len(codecs.BOM_UTF8) if encoding == "utf-8-sig" else 0)
            yield from _numbered(iter(lambda: file.readline(limits.MAX_LINE_BYTES + 1), b""))
        return
    with open(path, encoding=encoding, errors=_SURROGATES, newline="\n") as text:
        lines = iter(lambda: text.readline(limits.MAX_LINE_BYTES + 1), "")
        yield from _numbered(line.encode("utf-8", _SURROGATES) for line in lines)


def _numbered(lines: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(lines, 1):
        if len(line) > limits.MAX_LINE_BYTES:
            raise ValueError(f"line {number} has more than {limits.MAX_LINE_BYTES} bytes")
        yield number, line.rstrip(b"\r\n")


class _Shown(reprlib.Repr):
    """A `Repr` that stops after a few values and two levels, since a value that contains itself has no end."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxother = self.maxlong = limits.MAX_MESSAGE

    def repr_int(self, value: int, level: int) -> str:
        """Describe a huge number by its size, because Python refuses to convert it."""
        return repr(value) if value.bit_length() < 200 else f"a number of {value.bit_length()} bits"


_shown = _Shown()


def shown(value: Any) -> str:
    """Return a foreign value as text for a message: at most one line, quickly, whatever the value is."""
    text = _shown.repr(value)
    return text if len(text) <= limits.MAX_MESSAGE else text[: limits.MAX_MESSAGE - 3] + "..."


def printable(text: str) -> str:
    """Return text with line ends, control characters and undecodable bytes of file names as escapes."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda match: match[0].encode("unicode_escape").decode(), text)
