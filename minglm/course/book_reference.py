"""The part of the book that is not notebooks: the pages of docs/, and the API reference made from the docstrings.

One page a room, so that a reader who knows the tree knows where to look.
"""

from __future__ import annotations

from pathlib import Path

from minglm import atomic

PACKAGES = ("minglm", "sim")
# Pages in the order in which a newcomer wants them.
DOCS = (
    "architecture",
    "glossary",
    "effects",
    "keys",
    "design_decisions",
    "platforms",
    "reading_list",
    "cheat_sheet",
    "how-to/add_a_chip",
    "how-to/add_a_model",
    "how-to/add_a_schedule",
    "how-to/add_an_rl_mode",
    "how-to/add_an_exercise",
    "how-to/correct_a_datum",
)
# Programs, not modules: importing them does their work, or they are read as data.
NOT_IMPORTED = ("exercises", "checks", "sandbox_child.py", "__main__.py", "mindspore.py")


def write(target: Path, root: Path) -> list[str]:
    """Write the pages into the book's folder; returns the lines of its table of contents."""
    toc = ["- caption: 'Reference'", "  chapters:"]
    for name in DOCS:
        page = target / "docs" / f"{name}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        atomic.copy(root / "docs" / f"{name}.md", page)
        toc.append(f"  - file: docs/{name}")
    (target / "api").mkdir()
    for package in PACKAGES:
        for room in sorted(p.parent for p in (root / package).glob("*/__init__.py")):
            name = f"{package}_{room.name}"
            atomic.write_text(target / "api" / f"{name}.md", _room_page(package, room))
            toc.append(f"  - file: api/{name}")
    return toc


def _room_page(package: str, room: Path) -> str:
    """MyST of one room: each module with its public members."""
    text = f"# {package}.{room.name}\n"
    for path in sorted(room.rglob("*.py")):
        inside = path.relative_to(room)
        if path.name == "__init__.py" or any(part in NOT_IMPORTED for part in inside.parts):
            continue
        module = ".".join((package, room.name, *inside.with_suffix("").parts))
        text += (
            f"\n## {module.removeprefix(package + '.')}\n\n```{{eval-rst}}\n.. automodule:: {module}\n   "
            ":members:\n```\n"
        )
    return text
