"""Who has solved what: one small JSON file per learner, kept locally; `minglm workshop collect` makes a table of them.

The folder is `runs/workshop/results`, or MINGLM_RESULTS (a folder that a whole class shares). The learner is
MINGLM_LEARNER, else the name of the account. Nothing is sent anywhere.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import time
from pathlib import Path

from minglm import atomic, datafiles
from minglm.errors import InputError


def folder() -> Path:
    """Where results are written: MINGLM_RESULTS, else runs/workshop/results."""
    return Path(os.environ.get("MINGLM_RESULTS", datafiles.default_runs() / "workshop" / "results"))


def learner() -> str:
    """A name fit for a file: letters, digits, dot, dash and underscore."""
    try:
        name = os.environ.get("MINGLM_LEARNER") or getpass.getuser()
    except (OSError, KeyError, ImportError):  # no account name: some containers, some Windows services
        name = "learner"
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "learner"


def record(key: str, right: bool, sentence: str = "") -> None:
    """Add one attempt to this learner's file. A disk that cannot be written does not stop a lesson."""
    path = folder() / f"{learner()}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            book = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            book = {"learner": learner(), "exercises": {}}
        entry = book["exercises"].setdefault(key, {"attempts": 0, "right": False})
        entry["attempts"] += 1
        if right and not entry["right"]:
            entry.update(right=True, solved_at=round(time.time()), attempts_needed=entry["attempts"])
        if not right and not entry["right"]:
            entry["last_message"] = sentence
        atomic.write_json(path, book)
    except OSError as err:
        print(f"(the result was not kept: {err})")


def collect(where: Path | None = None) -> list[dict]:
    """All learners' books, sorted by name.

    Raises:
        InputError: no folder or no file there.
    """
    where = folder() if where is None else Path(where)
    books = []
    for path in sorted(where.glob("*.json")) if where.is_dir() else ():
        try:
            book = json.loads(path.read_text(encoding="utf-8"))
            books.append({"learner": str(book["learner"]), "exercises": dict(book["exercises"])})
        except (OSError, ValueError, KeyError, TypeError):
            print(f"{path}: not a result file, left out")
    if not books:
        raise InputError(
            f"{where}: no results there; a learner's check writes one, or give the folder that MINGLM_RESULTS names"
        )
    return books


def table(books: list[dict], keys: list[str]) -> str:
    """Learners down, notebooks across: solved of all; below, the exercises on which the class is stuck."""
    notebooks = sorted({key.split(".")[0] for key in keys})
    width = max(len("learner"), *(len(b["learner"]) for b in books))
    lines = ["  ".join([f"{'learner':<{width}}", *(f"{n:>{max(5, len(n))}}" for n in notebooks), "  all"])]
    for book in books:
        cells, total = [], 0
        for n in notebooks:
            own = [k for k in keys if k.startswith(n + ".")]
            done = sum(bool(book["exercises"].get(k, {}).get("right")) for k in own)
            total += done
            cells.append(f"{done}/{len(own)}".rjust(max(5, len(n))))
        lines.append("  ".join([f"{book['learner']:<{width}}", *cells, f"{total}/{len(keys)}".rjust(5)]))
    stuck = []
    for key in keys:
        tried = [b["exercises"][key] for b in books if key in b["exercises"]]
        open_ = [e for e in tried if not e["right"]]
        if open_:
            messages = [e.get("last_message", "") for e in open_]
            stuck.append((len(open_), key, max(set(messages), key=messages.count)))
    if stuck:
        lines += ["", "not solved yet (learners, exercise, what they were told most often):"]
        lines += [f"  {n:>3}  {key}  {sentence}" for n, key, sentence in sorted(stuck, key=lambda s: (-s[0], s[1]))]
    return "\n".join(lines)
