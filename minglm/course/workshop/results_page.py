"""A page for the teacher: who has solved which task, written again every few seconds; the browser loads it again.

`minglm workshop collect --page class.html` writes it until it is stopped. No server, no network: a file.
"""

from __future__ import annotations

import time
from html import escape
from pathlib import Path

from minglm import atomic
from minglm.course import assets
from minglm.course.workshop import results
from minglm.errors import InputError


def page(books: list[dict], keys: list[str], every_s: float) -> str:
    """Learners down, the tasks that somebody has tried across; above the list of those on which the class is stuck.

    A cell says ✓ where the task is solved, else how often it was tried.

    Args:
        books: as `results.collect` gives them; may be empty, before the first check.
        every_s: seconds after which a browser loads the page again, 0 for never.
    """
    tried = [key for key in keys if any(key in book["exercises"] for book in books)]
    head = "".join(f"<th>{escape(key)}</th>" for key in tried)
    solved = "".join(f"<th>{sum(_right(book, key) for book in books)} of {len(books)}</th>" for key in tried)
    rows = "".join(
        f"<tr><td>{escape(book['learner'])}</td>{''.join(_cell(book, key) for key in tried)}</tr>" for book in books
    )
    again = f'<meta http-equiv="refresh" content="{every_s:g}">' if every_s else ""
    stuck = "".join(
        f"<li>{n} on <b>{escape(key)}</b>: {escape(sentence)}</li>" for n, key, sentence in results.stuck(books, keys)
    )
    body = f"<table><tr><th>learner</th>{head}</tr><tr><th>solved</th>{solved}</tr>{rows}</table>"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{again}<title>The class</title>'
        f"<style>\n{assets.read('class.css')}</style></head><body><h1>The class, {time.strftime('%H:%M:%S')}</h1>"
        f"{f'<h2>Not solved yet</h2><ul>{stuck}</ul>' if stuck else ''}"
        f"{body if tried else '<p>Nobody has checked a task yet.</p>'}</body></html>\n"
    )


def _right(book: dict, key: str) -> bool:
    return bool(book["exercises"].get(key, {}).get("right"))


def _cell(book: dict, key: str) -> str:
    if key not in book["exercises"]:
        return "<td></td>"
    if _right(book, key):
        return '<td class="right">✓</td>'
    return f'<td class="tried">{book["exercises"][key]["attempts"]}×</td>'


def write(where: Path | None, keys: list[str], target: Path, every_s: float) -> None:
    """Write the page once; a folder without results gives a page that says so."""
    try:
        books = results.collect(where)
    except InputError:
        books = []
    atomic.write_text(target, page(books, keys, every_s))


def keep_writing(where: Path | None, keys: list[str], target: Path, every_s: float) -> None:
    """Write the page every `every_s` seconds until the process is interrupted; once where that is 0."""
    while True:
        write(where, keys, target, every_s)
        if not every_s:
            return
        time.sleep(every_s)
