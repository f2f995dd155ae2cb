"""Format, lint, types and doctests: what a reviewer would otherwise say in every review."""

import doctest
import importlib
import subprocess
import sys

import pytest

from minglm import datafiles

ROOT = datafiles.root()


def run(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_everything_is_formatted():
    pytest.importorskip("ruff", reason="ruff is missing: pip install -e '.[dev]'")
    done = run("ruff", "format", "--check", ".")
    assert done.returncode == 0, done.stdout[-3000:] + "\nruff format . writes them"


def test_the_rules_of_pyproject_hold():
    pytest.importorskip("ruff", reason="ruff is missing: pip install -e '.[dev]'")
    done = run("ruff", "check", ".")
    assert done.returncode == 0, done.stdout[-3000:]


def test_types():
    pytest.importorskip("mypy", reason="mypy is missing: pip install -e '.[dev]'")
    pytest.importorskip("torch", reason="types of half of the modules come from torch")
    done = run("mypy")
    assert done.returncode == 0, done.stdout[-3000:]


def with_examples() -> list[str]:
    found = []
    for package in ("minglm", "sim"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                found.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return found


@pytest.mark.parametrize("name", with_examples())
def test_examples_in_docstrings_are_true(name):
    try:
        module = importlib.import_module(name)
    except ImportError as err:
        pytest.skip(f"{err.name} is not installed")
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted and not result.failed


def test_a_false_example_is_found(tmp_path, monkeypatch):
    """Negative control of the test above."""
    (tmp_path / "false_example.py").write_text('"""\n>>> 1 + 1\n3\n"""\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sys, "stdout", open("/dev/null", "w") if sys.platform != "win32" else sys.stdout)
        assert doctest.testmod(importlib.import_module("false_example")).failed == 1
