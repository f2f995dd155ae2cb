"""`minglm exercise`: a learner's sheet or Python file run and checked outside Jupyter.

A sheet's cells run in order, as Jupyter would run them, in the short version and without its pictures. What stops is
said and the next cell runs, so that one blank does not hide the answers after it.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minglm import datafiles
from minglm.course import notebook
from minglm.course.workshop import checking, generator
from minglm.errors import InputError, nearest

_CHECK = re.compile(r'^check\("([\w.]+)"', flags=re.M)


@dataclass(frozen=True)
class Result:
    """One check: its exercise, whether the answer is right, and else the sentence that says why not."""

    key: str
    right: bool
    sentence: str = ""


def keys_of(name: str) -> list[str]:
    """The exercises that a name stands for: a key, or a sheet by its name or the beginning of its keys.

    >>> keys_of("plan_planner.choose"), len(keys_of("02")) == len(keys_of("02_mla"))
    (['plan_planner.choose'], True)

    Raises:
        InputError: no such exercise and no such sheet.
    """
    exercises = checking.all_exercises()
    if name in exercises:
        return [name]
    sheets = {
        text: generator.prefix(s.stem) for s in generator.sources() for text in (s.stem, generator.prefix(s.stem))
    }
    if name not in sheets:
        known = [*exercises, *sheets]
        raise InputError(
            f"exercise {name[:60]!r}: neither an exercise nor a sheet{nearest(name, known)}; `minglm exercise list` "
            "names them all"
        )
    return [key for key in exercises if key.split(".")[0] == sheets[name]]


def sheet_of(key: str) -> Path:
    """The source of the sheet in which an exercise stands."""
    return next(s for s in generator.sources() if generator.prefix(s.stem) == key.split(".")[0])


def own_copy(source: Path) -> Path:
    """The learner's notebook of a sheet: in the present folder if it is a copy of the course, else the course's own."""
    place = generator.place(source, solved=False)
    here = Path.cwd() / place.relative_to(datafiles.notebooks())
    return here if here.is_file() else place


def check(name: str, file: Path | None = None) -> list[Result]:
    """Check what a name stands for, in a notebook or Python file of the learner's (default: `own_copy`).

    Raises:
        InputError: an unknown name, or a file that cannot be read.
    """
    keys = keys_of(name)
    source = sheet_of(keys[0])
    file = file or own_copy(source)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        why = getattr(err, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{file}: cannot be read ({why}); give the notebook or .py file that you wrote") from None
    cells = _cells(text, file) if file.suffix != ".py" else [text, *_checks(source)]
    with _quietly():
        found = list(_run(cells, keys))
    missing = [key for key in keys if key not in {r.key for r in found}]
    return [*found, *(Result(key, False, "No check of this exercise is in the file.") for key in missing)]


def _cells(text: str, file: Path) -> list[str]:
    try:
        cells = json.loads(text)["cells"]
        return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{file}: not a notebook; give an .ipynb of the course, or a .py file") from None


def _checks(source: Path) -> list[str]:
    """The sheet's own calls of check, for a file that has only the answers."""
    cells = generator.cells(source.read_text(encoding="utf-8"), source.name)
    return [
        "from minglm.course.workshop import check",
        *(t for kind, t in cells if kind == "code" and _CHECK.search(t)),
    ]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without output or pictures, in the short version."""
    before = notebook.SMOKE, notebook.show
    shown: Callable[..., None] = lambda *args, **kwargs: None  # noqa: E731
    try:
        notebook.SMOKE, notebook.show = True, shown
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        notebook.SMOKE, notebook.show = before


def _run(cells: list[str], keys: list[str]) -> Iterator[Result]:
    space: dict[str, Any] = {"__name__": "__main__"}
    stopped = ""
    for cell in cells:
        asked = _CHECK.search(cell)
        if asked and asked[1] not in keys:
            continue
        try:
            exec(compile(ast.parse(cell), "your answer", "exec"), space)
        except checking.NotYet as err:
            if asked:
                yield Result(asked[1], False, str(err))
        except NotImplementedError:
            pass  # a cell that shows what is still to be written
        except (Exception, SystemExit) as err:
            first = (str(err).splitlines() or [""])[0]
            words = f"{type(err).__name__}: {first}"
            if asked:
                yield Result(asked[1], False, f"{words}.{stopped}")
            else:
                stopped = f" A cell before it stopped with {words}."
        else:
            if asked:
                yield Result(asked[1], True)
