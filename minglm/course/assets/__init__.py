"""Style sheets, scripts and texts that the course puts into pages and sheets: the files of this folder."""

from __future__ import annotations

from pathlib import Path


def read(name: str) -> str:
    """The text of a file of this folder, such as "slides.css"."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
