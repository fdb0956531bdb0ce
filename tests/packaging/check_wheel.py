"""Installs wheels into fresh environments and uses them as a new user would: `make test-wheel`.

Run from the top of the tree: python -m tests.packaging.check_wheel --torch 2.13.0 dist/*.whl
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from tests.packaging.wheel_rules import ROOT, content_objections, release_objections

USE = """
import shutil, sys
from pathlib import Path
assert [name for name in ("cc", "gcc", "g++", "c++", "clang", "nvcc", "zig") if shutil.which(name)] == []
import seed_fast
assert "torch" not in sys.modules, "import seed_fast should stay light"
assert str(Path(seed_fast.__file__)).startswith(sys.prefix), seed_fast.__file__
import torch, seed_fast.kernels
from PIL import Image
from seed_fast import SeedTokenizer
from seed_fast.ops import backend, nearest_code
compiled = sys.argv[1] == "compiled"
if compiled:
    import seed_fast._C
z, codebook = torch.randn(100, 32), torch.randn(512, 32)
distance = codebook.double().square().sum(1) - 2 * z.double() @ codebook.double().T
with backend("cpu" if compiled else "reference"):
    assert torch.equal(nearest_code(z, codebook), distance.argmin(1))
codes = SeedTokenizer.from_pretrained("seed-tiny").encode(Image.open("picture.png"))
assert codes.shape == (1, 32) and codes.dtype == torch.int64, codes
print(torch.__version__, codes[0].tolist(), sep="\\n")
"""
PICTURE = """
import numpy as np
from PIL import Image
y, x = np.mgrid[0:240, 0:320]
noise = np.random.default_rng(0).integers(0, 60, (240, 320))
Image.fromarray(np.stack([x % 256, y % 256, (x * y // 200 + noise) % 256], -1).astype(np.uint8)).save("picture.png")
"""
# Of the pinned versions, those that only fit the pinned torch.
FOLLOWS_TORCH = ("torch", "triton", "sympy", "networkx", "mpmath", "nvidia-", "setuptools")


class Failed(Exception):
    """A step failed; the text is what it printed."""


def run(command: list[object], **options) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    if result.returncode:
        raise Failed(f"{' '.join(map(str, command))[:200]}\n{result.stdout}{result.stderr}")
    return result.stdout


def constraints(torch: str, folder: Path) -> Path:
    """The development pins with another torch in them."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    if f"torch=={torch}" not in lines:
        lines = [line for line in lines if not line.startswith(FOLLOWS_TORCH)]
        lines.append(f"torch=={torch}")
    path = folder / "constraints.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def check(wheel: Path, torch: str, folder: Path) -> None:
    """Install `wheel` with this torch in a fresh environment and use it from another directory without a compiler."""
    compiled = "none-any" not in wheel.name
    if objections := (release_objections if compiled else content_objections)(wheel):
        raise Failed("\n".join(objections))
    venv.create(folder / "venv", with_pip=True)
    bin_folder, elsewhere = folder / "venv" / "bin", folder / "elsewhere"
    elsewhere.mkdir()
    pip = [bin_folder / "python", "-m", "pip", "install", "--quiet", "-c", constraints(torch, folder)]
    run([*pip, wheel.resolve()])
    options = {"cwd": elsewhere, "env": {"PATH": str(bin_folder), "HOME": str(elsewhere), "HF_HUB_OFFLINE": "1"}}
    python = [bin_folder / "python", "-W", "error::DeprecationWarning:seed_fast"]
    run([*python, "-c", PICTURE], **options)
    version, codes = run([*python, "-c", USE, "compiled" if compiled else "pure"], **options).splitlines()
    if version.split("+")[0] != torch:
        raise Failed(f"torch {version} was installed, {torch} was asked for")
    text = run([bin_folder / "seed-fast", "info"], **options)
    state = f"compiled         {'yes' if compiled else 'no: this is a pure-Python installation'}"
    if state not in text:
        raise Failed(f"seed-fast info does not say '{state}':\n{text}")
    run([bin_folder / "seed-fast", "tokenize", "picture.png", "--output", "codes.jsonl"], **options)
    (line,) = (elsewhere / "codes.jsonl").read_text().splitlines()
    if json.loads(line)["codes"] != json.loads(codes):
        raise Failed(f"seed-fast tokenize and encode() disagree:\n{line}\n{codes}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("wheels", type=Path, nargs="+")
    parser.add_argument("--torch", required=True, help="version to install beside the wheel")
    arguments = parser.parse_args()
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheels = [
        path for path in arguments.wheels if path.is_file() and ("none-any" in path.name or f"-{tag}-" in path.name)
    ]
    if not wheels:
        print(
            f"no wheel for {tag} among {', '.join(map(str, arguments.wheels))}: run `make wheel` first", file=sys.stderr
        )
        return 2
    for wheel in wheels:
        start = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="seed-fast-wheel-") as folder:
                check(wheel, arguments.torch, Path(folder))
        except Failed as failure:
            print(f"{wheel.name} with torch {arguments.torch}: FAILED\n{failure}", file=sys.stderr)
            return 1
        print(f"{wheel.name} with torch {arguments.torch}: good ({time.monotonic() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
