"""The docs name what is there: generated parts are in step, paths exist, links lead somewhere, the glossary covers the
metrics."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from minglm import datafiles

ROOT = datafiles.root()
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "data" / "README.md"])
NOW = [p for p in PAGES if p.name != "CHANGELOG.md"]  # which names what is gone


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_in_step(capsys):
    assert load(ROOT / "docs" / "generate.py").main(["--check"]) == 0, capsys.readouterr().out


def test_the_command_of_the_how_to_pages_runs_from_a_clone():
    """As a person types it: only the packages are installed, the tests beside them are not."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = [sys.executable, "docs/generate.py", "--check"]
    done = subprocess.run(run, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", NOW, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_paths_in_backticks_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:minglm|sim|data|tests|notebooks|docs)/[\w./-]+)`", text)
    missing = [
        n
        for n in named
        if "NAME" not in n and "NN_" not in n and "cNN" not in n and "YOURS" not in n and not (ROOT / n).exists()
    ]
    assert not missing, missing


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", t)]
    missing = [t for t in targets if t and not (page.parent / t).exists()]
    assert not missing, missing


def test_every_law_has_its_test():
    """docs/laws.md names tests that exist, and every file of generated tests that states laws is in it."""
    text = (ROOT / "docs" / "laws.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|") and "::" in line]
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text)
    assert len(rows) >= 25 and len(named) >= len(rows)
    for row in rows:
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", row), row
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no {test}"
    of_laws = re.findall(r"def (test_\w+)", (ROOT / "tests/property/test_laws.py").read_text(encoding="utf-8"))
    assert not set(of_laws) - {test for _, test in named}


def test_every_room_and_how_to_is_reached_from_the_first_pages():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        if page.name != "README.md":
            assert page.relative_to(ROOT / "docs").as_posix() in index, f"docs/README.md does not name {page.name}"
    assert "docs/architecture.md" in (ROOT / "README.md").read_text(encoding="utf-8")
