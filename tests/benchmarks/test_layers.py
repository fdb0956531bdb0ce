"""Imports of the benchmarks go downwards only, and the package never imports them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.results import ROOT

# From top to bottom; a module imports modules of lower lines alone, or of its own package.
LAYERS = (
    ("run", "report"),
    ("figures",),
    ("tables", "measure", "overview", "volta_report"),
    ("memory",),
    ("catalog",),
    ("e2e",),
    ("ops",),
    ("compare", "faiss_process", "timing", "sass", "volta_work"),
    ("results",),
    ("providers",),
)
RANK = {name: len(LAYERS) - line for line, names in enumerate(LAYERS) for name in names}
FILES = sorted((ROOT / "benchmarks").rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def of_benchmarks(path: Path) -> set[str]:
    """First parts of the names below `benchmarks` that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("benchmarks.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_lower_layers_only(path):
    own = path.relative_to(ROOT / "benchmarks").with_suffix("").parts[0]
    if own == "__init__":
        assert not of_benchmarks(path)
        return
    assert own in RANK, f"{own}: give it a layer"
    assert not {name for name in of_benchmarks(path) if name != own and RANK[name] >= RANK[own]}


def test_modules_of_one_package_form_no_circle():
    for package in ("e2e", "ops"):
        edges = {}
        for path in (ROOT / "benchmarks" / package).glob("*.py"):
            prefix = f"benchmarks.{package}."
            edges[path.stem] = {name[len(prefix) :].split(".")[0] for name in imports(path) if name.startswith(prefix)}
        seen: set[str] = set()
        while ready := {name for name, needs in edges.items() if name not in seen and needs & set(edges) <= seen}:
            seen |= ready
        assert seen == set(edges), f"circle in {package}: {set(edges) - seen}"


def test_the_package_does_not_import_the_benchmarks():
    for path in (ROOT / "seed_fast").rglob("*.py"):
        assert not [name for name in imports(path) if name.split(".")[0] == "benchmarks"], path
