"""`minglm workshop polls`: every question that a notebook asks before it answers, for a show of hands.

The page `notebooks/workshop/polls.md` is made from the notebooks: "Predict first" with its answer, "Question" without
one, since the next cell computes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from minglm import atomic, datafiles
from minglm.course.workshop.timing import notebooks

PAGE = datafiles.notebooks("workshop") / "polls.md"
HEAD = """# Polls

What the notebooks ask before they answer, made by `minglm workshop polls --write`. Read the question aloud, let
everybody raise a hand or write the guess down, and only then run the cell. Where no answer stands, the next cell
computes it.
"""
_PREDICT = re.compile(r"<summary><b>Predict first:</b>\s*(.*?)</summary>\s*(.*?)\s*</details>", re.S)
_QUESTION = re.compile(r"^\*\*Question\.\*\*\s*(.*)$", re.M)


def polls(notebook: Path) -> Iterator[tuple[str, str]]:
    """(question, answer or "") in the order of the notebook."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""
        found = [(m.start(), m[1], m[2]) for m in _PREDICT.finditer(text)]
        found += [(m.start(), m[1], "") for m in _QUESTION.finditer(text)]
        for _, question, answer in sorted(found):
            yield " ".join(question.split()), " ".join(answer.split())


def page() -> str:
    """All polls as Markdown, a section for each notebook that has some."""
    parts = [HEAD]
    for notebook in notebooks():
        asked = [
            f"- {question[:1].upper()}{question[1:]}" + (f"\n  Answer: {answer}" if answer else "")
            for question, answer in polls(notebook)
        ]
        if asked:
            name = notebook.relative_to(datafiles.notebooks()).with_suffix("").as_posix()
            parts.append(f"## {name}\n\n" + "\n".join(asked) + "\n")
    return "\n".join(parts)


def write() -> bool:
    """Write the page; False where it was in step already."""
    text = page()
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return False
    atomic.write_text(PAGE, text)
    return True
