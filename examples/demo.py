"""Real photographs to codes with the embedded seed-tiny model: what `make demo` runs.

The photographs come with scikit-image (`pip install seed_fast[demo]`); nothing is downloaded. The work is one command,
which this script prints before it runs it:

    seed-fast tokenize .../skimage/data/chelsea.png ... --output out/demo-codes.jsonl --overwrite
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path

OUTPUT = Path("out/demo-codes.jsonl")
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)


def photographs() -> list[str]:
    """Paths of the photographs inside the installed scikit-image, found without importing it."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        sys.exit("demo: scikit-image is not installed; pip install scikit-image")
    found = [path for name in PHOTOGRAPHS if (path := Path(package.origin).parent / "data" / name).is_file()]
    if not found:
        sys.exit(f"demo: {package.origin}: this scikit-image holds none of the photographs")
    return [str(path) for path in found]


def main() -> int:
    """Tokenise, print the codes, and return the command's exit code."""
    arguments = ["tokenize", *photographs(), "--output", str(OUTPUT), "--model", "seed-tiny", "--overwrite"]
    print(f"seed-fast {shlex.join(arguments)}\n", flush=True)
    done = subprocess.run([sys.executable, "-m", "seed_fast", *arguments], check=False)
    if OUTPUT.is_file():
        print("\ncodes")
        for line in OUTPUT.read_text().splitlines():
            image = json.loads(line)
            print(f"{Path(image['path']).name:<22}", *image["codes"])
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
