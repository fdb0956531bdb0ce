"""Nobody imports another module's private name, and nothing but the command line knows of it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "seed_fast").rglob("*.py"))


def private_names(source: str, package: Path = ROOT) -> list[str]:
    """Private names that a source takes from another module, as "module._name".

    A private *module*, such as `seed_fast._files`, belongs to the whole package; a private name belongs to its module.
    """
    tree, modules, taken = ast.parse(source), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("seed_fast"):
            folder = package / (node.module or "").replace(".", "/")
            for alias in node.names:
                is_module = (folder / alias.name).is_dir() or (folder / f"{alias.name}.py").is_file()
                if is_module or alias.name == "_C":
                    modules[alias.asname or alias.name] = alias.name
                elif alias.name.startswith("_") and not alias.name.startswith("__"):
                    taken.append(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            is_private = node.attr.startswith("_") and not node.attr.startswith("__")
            if is_private and node.value.id in modules:
                taken.append(f"{modules[node.value.id]}.{node.attr}")
    return taken


def test_no_module_takes_a_private_name_of_another() -> None:
    taken = {str(path.relative_to(ROOT)): private_names(path.read_text(encoding="utf-8")) for path in MODULES}
    assert {path: names for path, names in taken.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "from seed_fast.data.pool import _Pool",
        "from seed_fast.data import pool\npool._run()",
        "from seed_fast.data import pool as decoding\ndecoding._run()",
    ],
)
def test_a_private_name_is_recognised(source: str) -> None:
    assert len(private_names(source)) == 1


def test_private_modules_and_special_names_are_no_private_names() -> None:
    assert not private_names("from seed_fast import _files, __version__\n_files.write_beside\n")


def imported_packages(source: str) -> set[str]:
    """The first parts of all names that a source imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


def test_only_the_command_line_imports_typer() -> None:
    others = [path for path in MODULES if "cli" not in path.relative_to(ROOT).parts]
    parsers = {"typer", "click", "argparse"}
    assert [str(path) for path in others if imported_packages(path.read_text(encoding="utf-8")) & parsers] == []
    assert imported_packages((ROOT / "seed_fast/cli/tokenize.py").read_text(encoding="utf-8")) & parsers


SHOWS_COMMANDS = {"seed_fast/lm/card.py"}  # a model card is read by people, who call commands


def options_in_texts(source: str) -> list[str]:
    """The options of commands that the texts of a source name: messages, parts of f-strings, docstrings."""
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return [option for text in texts if isinstance(text, str) for option in re.findall(r"--[a-z][\w-]*", text)]


def test_only_the_command_line_names_options() -> None:
    """The library names the argument; the command, which knows the option, adds its name."""
    others = {str(path.relative_to(ROOT)): path for path in MODULES if "cli" not in path.relative_to(ROOT).parts}
    found = {name: options_in_texts(path.read_text(encoding="utf-8")) for name, path in others.items()}
    assert {name for name, options in found.items() if options} == SHOWS_COMMANDS, found


@pytest.mark.parametrize(
    "source",
    ['"""Behind `convert --to-official`."""', 'raise ValueError(f"{path}: left by a run; --overwrite drops it")'],
)
def test_an_option_in_a_text_is_recognised(source: str) -> None:
    assert len(options_in_texts(source)) == 1


def test_dashes_in_prose_and_comments_are_no_options() -> None:
    assert not options_in_texts('"a -- b, f32-to-f16"  # as --overwrite does')
