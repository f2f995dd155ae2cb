"""Which way imports point: the contracts of pyproject.toml, and imports inside functions."""

import ast
import re
from collections import Counter

import pytest

from minglm import datafiles

ROOT = datafiles.root()
# Modules that must be importable without torch although what they call needs it; each says so beside the import.
TORCH_FREE = re.compile(r"torch|--help|light", re.I)


def test_the_contracts_of_the_rooms_hold(monkeypatch, capsys):
    linter = pytest.importorskip("importlinter.cli", reason="import-linter is missing: pip install -e '.[dev]'")
    monkeypatch.chdir(ROOT)
    code = linter.lint_imports(no_cache=True)
    assert code == 0, capsys.readouterr().out[-3000:]


def imports_inside_functions():
    """(file, line, module) of each import of ours that is not at the top of a module."""
    for package in ("minglm", "sim"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "workshop/exercises" in path.as_posix():
                continue  # a learner's sheet
            tree = ast.parse(path.read_text(encoding="utf-8"))
            bodies = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
            lines = {
                (n.lineno, n.module)
                for body in bodies
                for n in ast.walk(body)
                if isinstance(n, ast.ImportFrom) and str(n.module).split(".")[0] in ("minglm", "sim")
            }
            for line, module in sorted(lines):
                yield path.relative_to(ROOT).as_posix(), line, module


def test_an_import_inside_a_function_is_for_third_parties_or_a_command():
    """A sibling imported late hides a circle or a wrong room. Commands put rooms off so that --help starts without
    torch."""
    elsewhere = [x for x in imports_inside_functions() if not re.match(r"(minglm|sim)/cli/", x[0])]
    files = Counter(path for path, _, _ in elsewhere)
    unexplained = []
    for path, line, module in elsewhere:
        near = "\n".join((ROOT / path).read_text(encoding="utf-8").splitlines()[max(0, line - 8) : line + 1])
        if "#" not in near or not TORCH_FREE.search(near):
            unexplained.append(f"{path}:{line} {module}")
    assert not unexplained, "import at the top, or say beside it why not (torch-free module): " + "; ".join(unexplained)
    assert sum(files.values()) <= 15, files  # may fall; one more says why here


def places_of_the_inventory():
    """(room, file, line) where the chips of a scenario's cluster are read or handed on, from file to report: messages,
    and rooms beside that way (planner, serving, rollouts), are left out."""
    rooms = ("cost", "report", "scenario", "spec", "study", "training", "cli")
    for path in sorted(file for room in rooms for file in (ROOT / "sim" / room).rglob("*.py")):
        if path.parent.name == "cli" and path.stem not in ("run", "campaign"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        told = {id(n) for text in ast.walk(tree) if isinstance(text, ast.JoinedStr) for n in ast.walk(text)}
        lines = set()
        for node in ast.walk(tree):
            names = {getattr(node, key, None) for key in ("attr", "id", "arg")}
            owner = getattr(node, "value", None)
            of_cluster = "cluster" in (getattr(owner, "id", None), getattr(owner, "attr", None))
            if id(node) not in told and ("cluster_chips" in names or ("num_chips" in names and of_cluster)):
                lines.add(node.lineno)
        yield from ((path.parent.name, path.name, line) for line in sorted(lines))


def test_the_walk_of_a_number_from_file_to_report_is_short():
    """An argument that every function passes on is an argument in the wrong place."""
    places = list(places_of_the_inventory())
    assert 5 < len(places) <= 25, places
    assert len({room for room, *_ in places}) <= 8
