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


def _lost(page):
    """Links of a page to files that are not there, and to headings that no page has."""
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists():
            lost.append(target)
        elif anchor and file.suffix == ".md":
            text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.S)
            titles = (re.sub(r"[`*]|\]\([^)]*\)", "", t) for t in re.findall(r"^#{1,6} (.+)$", text, flags=re.M))
            # the code host's rule for anchors
            if anchor not in {re.sub(r"[^\w\- ]", "", t.strip().lower()).replace(" ", "-") for t in titles}:
                lost.append(target)
    return lost


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    assert _lost(page) == []


def test_a_lost_file_and_a_lost_heading_are_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "## What `x` is\n[a](#what-x-is) [b](#gone) [c](none.md) [d](page.md#also-gone)\n", encoding="utf-8"
    )
    assert _lost(page) == ["#gone", "none.md", "page.md#also-gone"]


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


def test_every_public_question_names_what_holds_it():
    """docs/public_questions.md names tests and inputs of the gallery that exist."""
    text = (ROOT / "docs" / "public_questions.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| question")]
    assert len(rows) >= 40
    for row in rows:
        held = row.rsplit(" | ", 1)[1]
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`", held)
        inputs = re.findall(r"`((?:configs|scenarios|launches|tables|traces)/[\w.]+)`", held)
        assert named or inputs or "data/rollouts" in held, row
        for path, test in named:
            assert not test or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no {test}"
        assert all((ROOT / "tests/gallery/inputs" / one).exists() for one in inputs), row


def test_every_room_and_how_to_is_reached_from_the_first_pages():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        if page.name != "README.md":
            assert page.relative_to(ROOT / "docs").as_posix() in index, f"docs/README.md does not name {page.name}"
    assert "docs/architecture.md" in (ROOT / "README.md").read_text(encoding="utf-8")
