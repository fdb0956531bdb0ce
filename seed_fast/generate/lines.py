"""Text files of lines: captions to draw."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seed_fast._text import decode_text, parse_json, read_lines, shown


def read_captions(path: Path) -> list[str]:
    """Read captions from a file: one per line, or a JSON object with a "text" per line. Blank lines are left out.

    Returns:
        The captions; none for a file of blank lines.

    Raises:
        OSError: the file can't be read.
        ValueError: a line is neither; the message names it.
    """
    texts = []
    for number, line in nonblank_lines(path):
        try:
            text: Any = decode_text(line)
            if text.startswith("{"):
                record = parse_json(text)
                text = record.get("text") if isinstance(record, dict) else None
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"got {shown(text)}")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: expected a caption or a JSON line with a text: {error}") from None
        texts.append(text)
    return texts


def nonblank_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, bytes without surrounding white space) of each line that isn't blank.

    Raises:
        OSError: the file can't be read.
        ValueError: a line is too long; the message names the file and the line.
    """
    try:
        yield from ((number, line.strip()) for number, line in read_lines(path) if line.strip())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
