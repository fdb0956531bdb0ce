"""`seed-fast bench`: runs the benchmarks of the source tree, which a wheel does not carry, in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

MISSING = (
    "seed-fast bench: the benchmarks are part of the source tree, not of the installed package, and there is no "
    "benchmarks/run.py in {places}. Run it in a clone of the repository."
)


def source_tree() -> Path | None:
    """The folder that holds benchmarks/run.py: the current one, or the one of an editable installation; else None."""
    return next((place for place in _places() if (place / "benchmarks" / "run.py").is_file()), None)


def _places() -> tuple[Path, Path]:
    return Path.cwd(), Path(__file__).resolve().parents[1]


def run(arguments: Sequence[str]) -> int:
    """Run `python -m benchmarks.run` with these arguments.

    Args:
        arguments: as `python -m benchmarks.run --help` lists them; paths are absolute.

    Returns:
        Exit code: 0; 1 where seed_fast is wrong, failed or got slower; 2 where the command is wrong.
    """
    root = source_tree()
    if root is None:
        print(MISSING.format(places=" or ".join(dict.fromkeys(map(str, _places())))), file=sys.stderr)
        return 2
    # From the root, so that `benchmarks` and `seed_fast` are those of the tree.
    return subprocess.run([sys.executable, "-m", "benchmarks.run", *arguments], cwd=root, check=False).returncode
