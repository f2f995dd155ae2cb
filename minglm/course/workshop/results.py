"""Who has solved what: one small JSON file per learner, kept locally; `minglm workshop collect` makes a table of them.

The folder is `runs/workshop/results`, or MINGLM_RESULTS (a folder that a whole class shares). The learner is
JUPYTERHUB_USER (on a hub), else MINGLM_LEARNER, else the name of the account. Nothing is sent anywhere.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import sys
import time
import unicodedata
from pathlib import Path

from minglm import atomic, datafiles
from minglm.errors import InputError

_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}  # on Windows


def folder() -> Path:
    """Where results are written: MINGLM_RESULTS, else runs/workshop/results."""
    own = os.environ.get("MINGLM_RESULTS")
    return Path(own).expanduser() if own else datafiles.runs("workshop", "results")


def learner() -> str:
    """Who is learning here, by whoever knows best: the hub, MINGLM_LEARNER, the account. One line of plain text.

    In a hub's containers everybody has the same account.
    """
    try:
        given = os.environ.get("JUPYTERHUB_USER") or os.environ.get("MINGLM_LEARNER") or getpass.getuser()
    except (OSError, KeyError, ImportError):  # no account name: some containers, some Windows services
        given = ""
    text = unicodedata.normalize("NFC", given.encode(errors="replace").decode())
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split()) or "learner"


def file_name(name: str) -> str:
    """A learner's file, on any system: the name where it can be a file's, else what can be of it and a short hash.

    Two learners never share a file: capitals count, though some file systems do not tell them apart.

    >>> file_name("anna"), file_name("Anna")
    ('anna.json', 'anna-bf4fccd6.json')
    """
    plain = re.sub(r"[^\w.-]+", "_", name.lower()).strip("._")[:40]
    if plain != name or not plain or plain.split(".")[0] in _RESERVED:
        plain = f"{plain or 'learner'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{plain}.json"


def record(key: str, right: bool, sentence: str = "") -> None:
    """Add one attempt to this learner's file. Neither a disk that cannot be written nor an odd file stops a lesson."""
    path = folder() / file_name(learner())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        book: dict = {"learner": learner(), "exercises": {}}
        if path.exists():
            try:
                book, _ = read(path)
            except InputError:
                path.rename(path.with_suffix(".damaged"))  # kept: somebody may want to see what was in it
        entry = book["exercises"].setdefault(key, {"attempts": 0, "right": False})
        entry["attempts"] += 1
        if right and not entry["right"]:
            entry.update(right=True, solved_at=round(time.time()), attempts_needed=entry["attempts"])
        if not right and not entry["right"]:
            entry["last_message"] = sentence
        atomic.write_json(path, book)
    except OSError as err:
        print(f"(the result was not kept: {err})")


def read(path: Path) -> tuple[dict, int]:
    """A learner's book {learner, exercises: {key: entry}}, and how many of its entries are none and were left out.

    Raises:
        InputError: not a result file.
    """
    try:
        book = json.loads(path.read_text(encoding="utf-8-sig")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        book = None
    name, exercises = (book.get("learner"), book.get("exercises")) if isinstance(book, dict) else (None, None)
    if not isinstance(name, str) or not name.strip() or not isinstance(exercises, dict):
        raise InputError(f"{path}: not a result file; a learner's check writes a new one")
    good = {key: entry for key, entry in exercises.items() if _is_entry(entry)}
    shown = " ".join("".join(sign if sign.isprintable() else " " for sign in name).split()) or "learner"
    return {"learner": shown, "exercises": good}, len(exercises) - len(good)


def _is_entry(entry: object) -> bool:
    """Is it what `record` writes: how often an exercise was tried, whether it is solved, what was said last?"""
    if not isinstance(entry, dict):
        return False
    attempts, right, said = entry.get("attempts"), entry.get("right"), entry.get("last_message", "")
    return type(attempts) is int and attempts >= 0 and isinstance(right, bool) and isinstance(said, str)


def collect(where: Path | None = None) -> list[dict]:
    """All learners' books, sorted by file; what is no result is left out, and stderr says so.

    Raises:
        InputError: no folder or no file there.
    """
    where = folder() if where is None else Path(where)
    books = []
    for path in sorted(where.glob("*.json")) if where.is_dir() else ():
        try:
            book, odd = read(path)
        except InputError:
            print(f"{path}: not a result file, left out", file=sys.stderr)
            continue
        books.append(book)
        if odd:
            print(f"{path}: {odd} of its entries cannot be read, left out", file=sys.stderr)
    if not books:
        raise InputError(
            f"{where}: no results there; a learner's check writes one, or give the folder that MINGLM_RESULTS names"
        )
    return books


def _columns(text: str) -> int:
    """How wide a terminal shows a text: Chinese signs take two columns, accents that stand alone none."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def table(books: list[dict], keys: list[str]) -> str:
    """Learners down, notebooks across: solved of all; below, the exercises on which the class is stuck."""
    notebooks = sorted({key.split(".")[0] for key in keys})
    width = max(len("learner"), *(_columns(b["learner"]) for b in books))
    lines = ["  ".join([f"{'learner':<{width}}", *(f"{n:>{max(5, len(n))}}" for n in notebooks), "  all"])]
    for book in books:
        cells, total = [], 0
        for n in notebooks:
            own = [k for k in keys if k.startswith(n + ".")]
            done = sum(bool(book["exercises"].get(k, {}).get("right")) for k in own)
            total += done
            cells.append(f"{done}/{len(own)}".rjust(max(5, len(n))))
        lines.append(
            "  ".join(
                [book["learner"] + " " * (width - _columns(book["learner"])), *cells, f"{total}/{len(keys)}".rjust(5)]
            )
        )
    if open_tasks := stuck(books, keys):
        lines += ["", "not solved yet (learners, exercise, what they were told most often):"]
        lines += [f"  {n:>3}  {key}  {sentence}" for n, key, sentence in open_tasks]
    return "\n".join(lines)


def stuck(books: list[dict], keys: list[str]) -> list[tuple[int, str, str]]:
    """Tasks that were tried and not solved: (learners, key, the sentence that most of them were told), most first."""
    out = []
    for key in keys:
        tried = [b["exercises"][key] for b in books if key in b["exercises"]]
        messages = [e.get("last_message", "") for e in tried if not e["right"]]
        if messages:
            out.append((len(messages), key, max(sorted(set(messages)), key=messages.count)))
    return sorted(out, key=lambda s: (-s[0], s[1]))
