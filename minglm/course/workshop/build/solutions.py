"""The worked solutions of the sheets `build_*`, for the sheets after them and for the tests."""

from __future__ import annotations

from typing import Any

from minglm.course.workshop import generator
from minglm.errors import InputError, nearest


def solved(sheet: str) -> dict[str, Any]:
    """The names that a sheet's worked solution defines: its cells run in order, checks and pictures left out.

    Raises:
        InputError: no such sheet.

    >>> sorted(name for name in solved("build_1_layers") if name.startswith("RMS"))
    ['RMSNorm']
    """
    sheets = {path.stem: path for path in generator.sources()}
    if sheet not in sheets:
        raise InputError(f"sheet {sheet!r}: not one of them{nearest(sheet, sheets)}; see minglm/course/workshop")
    space: dict[str, Any] = {"__name__": sheet}
    for kind, text in generator.cells(sheets[sheet].read_text(encoding="utf-8"), sheet):
        if kind == "code" and (generator.BEGIN in text or text.startswith(("import ", "from "))):
            exec(compile(text, sheet, "exec"), space)
    return space
