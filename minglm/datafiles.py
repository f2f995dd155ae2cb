"""The one place that knows where files lie: the data, the notebooks, and where runs are written.

The same code runs from a checkout (data/ and notebooks/ stand beside the packages) and from an installation (they are
inside this package, as `_data` and `_notebooks`), in a browser too. Standard library only.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from minglm.errors import InputError

COURSE_NOTE = ".minglm-course.json"  # in a learner's own copy of the notebooks (`minglm course`)
_PACKAGE = Path(__file__).resolve().parent


@functools.cache
def root() -> Path | None:
    """The checkout's folder, or None in an installation."""
    return _PACKAGE.parent if (_PACKAGE.parent / "pyproject.toml").is_file() else None


def data(*parts: str) -> Path:
    """A file or folder of data/: `data("chips", "h100.yaml")`. It need not exist."""
    checkout = root()
    return (checkout / "data" if checkout else _PACKAGE / "_data").joinpath(*parts)


def package(name: str) -> Path:
    """The folder of our package `name`, "minglm" or "sim"; they stand side by side."""
    return _PACKAGE.parent / name


def notebooks(*parts: str) -> Path:
    """A file or folder of notebooks/: `notebooks("plan", "planner.ipynb")`. It need not exist."""
    checkout = root()
    return (checkout / "notebooks" if checkout else _PACKAGE / "_notebooks").joinpath(*parts)


def catalogue(folder: str | Path, *suffixes: str) -> dict[str, Path]:
    """Name → file of a folder, by name; of two files with one name the earlier suffix counts.

    Args:
        folder: under data/, such as "chips", or an absolute path.
        suffixes: which files, such as ".yaml".

    Raises:
        InputError: the folder is missing or holds no such file. An empty catalogue is never an answer: whatever is made
            of it would be empty too, and look right.
    """
    place = data() / folder
    files: dict[str, Path] = {}
    for suffix in suffixes:
        for path in place.glob(f"*{suffix}"):
            files.setdefault(path.name.removesuffix(suffix), path)
    if not files:
        state = f"holds no {' or '.join(suffixes)} file" if place.is_dir() else "no such folder"
        restore = f"restore it with: git checkout -- {shown(place)}"
        remedy = hint(restore, "install again with: pip install --force-reinstall minglm")
        raise InputError(f"{place}: {state}; {remedy}")
    return dict(sorted(files.items()))


def runs(*parts: str) -> Path:
    """A file or folder of the place where everything is written that is given no place of its own; it need not exist.

    MINGLM_RUNS; without it `default_runs()`.

    Raises:
        InputError: that is the user's data folder, and it cannot be written.
    """
    own = os.environ.get("MINGLM_RUNS")
    return (Path(own).expanduser() if own else default_runs()).joinpath(*parts)


def default_runs() -> Path:
    """runs/ of the checkout; in an installation that of the learner's course, for whatever runs inside it; else, and
    where those belong to somebody else, the user's data folder, which is said once. Never inside the package.

    What is made once and read by many (the demo, the workshop's checkpoints) is looked for here too, so that a notebook
    whose own runs go elsewhere still finds it."""
    project = root() or course()
    if project is not None and _writable(project / "runs"):
        return project / "runs"
    if sys.platform == "emscripten":  # a browser keeps what lies in the current folder, and nothing else
        return Path("runs")
    place = user_data() / "runs"
    if not _writable(place):
        raise InputError(f"{place}: cannot be written; set MINGLM_RUNS to a folder that can")
    _say_once(place)
    return place


@functools.cache
def _say_once(place: Path) -> None:
    print(f"runs are kept in {place}; MINGLM_RUNS names another folder", file=sys.stderr)


def user_data() -> Path:
    """The user's own data folder for this project, as each system wants it (the rules of platformdirs)."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "minglm"


def _writable(folder: Path) -> bool:
    """Whether it can be written, or made where it is not there yet."""
    there = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def course() -> Path | None:
    """The learner's copy of the notebooks that the current folder is or lies in, or None."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / COURSE_NOTE).is_file()), None)


def shown(path: Path) -> str:
    """A path as a message gives it: from the checkout's folder when it lies inside, with slashes."""
    checkout = root()
    if checkout is not None and path.is_relative_to(checkout):
        path = path.relative_to(checkout)
    return path.as_posix()


def where(*parts: str) -> str:
    """A file or folder of data/ as a message names it, so that the reader finds it here."""
    return shown(data(*parts))


def hint(in_checkout: str, installed: str) -> str:
    """The advice that can be followed here."""
    return installed if root() is None else in_checkout


def install_hint(extra: str = "") -> str:
    """The command that installs an extra, or several ("lab,dev"); without one, the base."""
    extras = f"[{extra}]" if extra else ""
    return hint(f"pip install -c constraints.txt -e '.{extras}'", f"pip install 'minglm{extras}'")
