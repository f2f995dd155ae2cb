"""From one source per notebook to two notebooks: blanked for learners, complete for instructors.

A source is a Python file in cells: `# %% [markdown]` opens text (each line behind "# "), `# %%` opens code. What stands
between `### BEGIN SOLUTION` and `### END SOLUTION` is replaced by a line that raises NotImplementedError. The markers
and the cell metadata are nbgrader's, so a course that grades with nbgrader can take the solutions as its source. The
first cell of every sheet ends with how to work on it.

A sheet NN_topic belongs to the notebook of that name in learn/ and its blank lies in workshop/exercises/; a sheet
build_N_topic is a notebook of its own, and its blank lies in learn/. A sheet scale_NN_topic or plan_topic belongs to a
notebook of that room, and its blank lies beside those of learn/.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from minglm import atomic, datafiles
from minglm.course import assets
from minglm.errors import InputError

SOURCES = Path(__file__).parent / "exercises"
TARGET = datafiles.notebooks("workshop")
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
BLANK = ("# YOUR CODE HERE", "raise NotImplementedError()")


def sources() -> list[Path]:
    """The sources of all sheets, in the order of their numbers."""
    return [path for start in ("[0-9]", "build_", "scale_", "plan_") for path in sorted(SOURCES.glob(f"{start}*.py"))]


def prefix(stem: str) -> str:
    """What the keys of a sheet's exercises begin with.

    >>> prefix("02_mla"), prefix("build_1_layers"), prefix("plan_planner")
    ('02', 'build_1', 'plan_planner')
    """
    return "_".join(stem.split("_")[: 2 if stem.startswith(("build_", "scale_", "plan_")) else 1])


def place(source: Path, solved: bool, target: Path | None = None) -> Path:
    """Where a sheet's notebook lies, blank or solved, in notebooks/workshop or in `target` in its place."""
    target = target or TARGET
    blank = target.parent / "learn" if source.stem.startswith("build_") else target / "exercises"
    return (target / "solutions" if solved else blank) / f"{source.stem}.ipynb"


def runnable(notebook: Path) -> Path:
    """The notebook to execute for this one: itself or, where the learner still has to fill it in, its solution."""
    return TARGET / "solutions" / notebook.name if is_blank(notebook) else notebook


def is_blank(notebook: Path) -> bool:
    """Whether a notebook of the course stops at its first check until the learner has filled it in."""
    return notebook.stem.startswith("build_") and notebook.parent.name == "learn"


def cells(text: str, name: str = "source") -> list[tuple[str, str]]:
    """Cut a source into ("markdown" | "code", text) cells.

    Raises:
        InputError: text before the first cell, a text line without its "# ", or unmatched solution markers.
    """
    out: list[tuple[str, list[str]]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"# %%( \[markdown\])?$", line):
            out.append(("markdown" if line.endswith("]") else "code", []))
        elif not out:
            if line.strip():
                raise InputError(f"{name} line {number}: text before the first cell; start with '# %% [markdown]'")
        elif out[-1][0] == "markdown":
            if line.strip() and not line.startswith("#"):
                raise InputError(
                    f"{name} line {number}: a line of text must begin with '# '; or open a code cell with '# %%'"
                )
            out[-1][1].append(line[2:] if line.startswith("# ") else line[1:])
        else:
            out[-1][1].append(line)
    for kind, lines in out:
        depth = 0
        for line in lines:
            depth += (line.strip() == BEGIN) - (line.strip() == END)
            if depth not in (0, 1):
                break
        if depth or (kind == "markdown" and any(line.strip() in (BEGIN, END) for line in lines)):
            raise InputError(f"{name}: '{BEGIN}' and '{END}' must come in pairs, in one code cell")
    return [(kind, "\n".join(lines).strip("\n")) for kind, lines in out if "\n".join(lines).strip()]


def blanked(code: str) -> str:
    """The code with each solution replaced by a line that says so, at the same indentation."""
    out, inside = [], False
    for line in code.splitlines():
        if line.strip() == BEGIN:
            indent = line[: len(line) - len(line.lstrip())]
            out += [indent + b for b in BLANK]
            inside = True
        elif line.strip() == END:
            inside = False
        elif not inside:
            out.append(line)
    return "\n".join(out)


def notebook(source: Path, solved: bool) -> dict:
    """The notebook as a dictionary of nbformat 4.5, without outputs, the same bytes each time."""
    sheet, levels = [], difficulties(source)
    for number, (kind, text) in enumerate(cells(source.read_text(encoding="utf-8"), source.name)):
        text = f"{text}\n\n{_how(source)}" if number == 0 else text
        cell: dict[str, Any] = {"cell_type": kind, "id": f"{prefix(source.stem)}-{number:02d}", "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
            key = re.search(r'^check\("([\w.]+)"', text, flags=re.M)
            if key and text.endswith(")"):
                text += f"  # difficulty {levels[key.group(1)]} of 5"
            if BEGIN in text:
                cell["metadata"] = {"nbgrader": _grade(f"answer-{prefix(source.stem)}-{number:02d}", solution=True)}
                text = text if solved else blanked(text)
            elif key:
                cell["metadata"] = {"nbgrader": _grade(key.group(1).replace(".", "-"), solution=False) | {"points": 1}}
        sheet.append({**cell, "source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": [dict(sorted(c.items())) for c in sheet],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def difficulties(source: Path) -> dict[str, int]:
    """Key → how hard an exercise is, from 1 to 5: by the lines of its worked solution, 1 to 2, 5, 9, 14, and more."""
    out, lines = {}, 0
    for kind, text in cells(source.read_text(encoding="utf-8"), source.name):
        if kind != "code":
            continue
        inside = False
        for line in text.splitlines():
            inside = line.strip() == BEGIN or (inside and line.strip() != END)
            lines += inside and line.strip() not in ("", BEGIN)
        if key := re.search(r'^check\("([\w.]+)"', text, flags=re.M):
            out[key.group(1)], lines = 1 + sum(lines > limit for limit in (2, 5, 9, 14)), 0
    return out


def _how(source: Path) -> str:
    """How to work on a sheet, and where its solution lies."""
    text = assets.read("how_exercises_work.md").rstrip()
    return (
        text.replace("`solutions` beside", "`workshop/solutions`, next to")
        if source.stem.startswith("build_")
        else text
    )


def _grade(name: str, solution: bool) -> dict:
    return {
        "grade": not solution,
        "grade_id": name,
        "locked": not solution,
        "schema_version": 3,
        "solution": solution,
        "task": False,
    }


def build(target: Path = TARGET, check_only: bool = False) -> list[Path]:
    """Write both kinds of every notebook; with `check_only` write nothing. Returns the files that were not as they
    should be.
    """
    changed = []
    for source in sources():
        for solved in (False, True):
            path = place(source, solved, target)
            text = json.dumps(notebook(source, solved), indent=1, ensure_ascii=False) + "\n"
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                changed.append(path)
                if not check_only:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    atomic.write_text(path, text, newline="\n")
    return changed
