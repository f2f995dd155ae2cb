"""Every notebook runs from top to bottom in smoke mode, shows its plots, and keeps the promises of its first cell.

Exercise sheets are checked in tests/minglm/course/test_workshop_exercises.py.
"""

import json
import os
import re
from itertools import pairwise
from pathlib import Path

import pytest

from minglm.course.workshop import generator

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(
    p for p in (ROOT / "notebooks").rglob("*.ipynb") if not {".ipynb_checkpoints", "workshop"} & set(p.parts)
)
IDS = [str(p.relative_to(ROOT / "notebooks")) for p in NOTEBOOKS]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 6


def _markdown(book) -> list[str]:
    return ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "markdown"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_is_committed_without_outputs_and_opens_with_what_why_and_how_long(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    for cell in book["cells"]:
        assert not cell.get("outputs"), "stored outputs: clear them before committing"
        assert not cell.get("execution_count")
    assert "widgets" not in book["metadata"], "stored widget state weighs megabytes: clear it"
    prose = _markdown(book)
    text = re.sub(r"```.*?```", "", "\n\n".join(prose), flags=re.S)
    levels = [len(m) for m in re.findall(r"^(#{1,6}) ", text, flags=re.M)]
    assert levels.count(1) == 1 and levels[0] == 1, "exactly one H1, and it comes first"
    for above, below in pairwise(levels):
        assert below <= above + 1, f"a heading of level {below} follows one of level {above}"
    opening = prose[0].lower()
    for promise in ("you will learn", "minute", "need"):
        assert promise in opening, f"the first cell must say '{promise}'"
    assert not re.search(
        r"^\s*[!%]", "\n".join("".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"), flags=re.M
    ), "no shell escapes: they fail on another system"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_runs_in_smoke_mode_and_shows_its_figures(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    from tests.helpers import kernels

    if hasattr(os, "fork"):
        kernels.use(monkeypatch)
    monkeypatch.setenv("MINGLM_SMOKE", "1")
    monkeypatch.setenv("MINGLM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
    book = nbformat.read(generator.runnable(path), as_version=4)
    client = NotebookClient(
        book,
        timeout=600,
        startup_timeout=240,
        kernel_name="python3",
        store_widget_state=False,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    shown = sum(
        "application/vnd.plotly.v1+json" in output.get("data", {})
        or 'role="img"' in output.get("data", {}).get("text/html", "")  # a picture of the planner page
        for cell in book.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    asked = sum(
        len(re.findall(r"^\s*show\(", cell.source, flags=re.M)) for cell in book.cells if cell.cell_type == "code"
    )
    assert shown >= asked > 0, f"{asked} figures asked for at the left margin, {shown} present"
