"""Every Python example of README.md and docs/ runs as it stands; links and names of files and targets are right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / "csrc/README.md", *ROOT.glob("seed_fast/*/README.md")]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *FOLDERS])
EXAMPLES = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


def test_the_readme_has_examples():
    assert sum(parameters.id.startswith("README") for parameters in EXAMPLES) >= 2


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", FOLDERS, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_folder_s_readme_names_files_that_exist(page):
    for name in re.findall(r"`([\w/.]+\.(?:py|cpp|h|cu))`", page.read_text()):
        if not name.startswith("_"):  # a suffix such as `_avx2.cpp`
            assert (page.parent / name).exists() or (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_that_the_pages_name_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?\bmake ([a-z][a-z-]+)\b(?=`|    )", page.read_text())) <= targets


def test_every_decision_is_dated_and_has_context_decision_and_consequence():
    decisions = re.split(r"^### ", (ROOT / "docs/decisions.md").read_text(), flags=re.MULTILINE)[1:]
    assert len(decisions) > 20
    for decision in decisions:
        assert re.match(r"20\d\d-\d\d-\d\d: \S", decision), decision.splitlines()[0]
        assert re.findall(r"^\*(\w+)\.\*", decision, re.MULTILINE) == ["Context", "Decision", "Consequence"], decision


def test_forms_ask_for_what_a_maintainer_needs():
    github = ROOT / ".github"
    assert "bash .ci/run" in (github / "workflows/ci.yml").read_text()
    assert "seed-fast info --json" in (github / "ISSUE_TEMPLATE/bug_report.yml").read_text()
    template = (github / "pull_request_template.md").read_text()
    assert "same loss?" in template
    assert "Measured speed?" in template
