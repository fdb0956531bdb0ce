"""Files that are whole whenever their name can be seen."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_beside(path: Path, content: bytes) -> None:
    """Write `content` to `<path>.tmp`, force it to the disk, and give it its name."""
    beside = path.with_name(path.name + ".tmp")
    with open(beside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


@contextmanager
def replace_folder_files(folder: Path) -> Iterator[Path]:
    """A folder to write into; at the end its files, subfolders too, take their names in `folder` one by one.

    If something is raised, `folder` stays as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as name:
        staging = Path(name)
        yield staging
        for path in sorted(path for path in staging.rglob("*") if path.is_file()):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            target = folder / path.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
