"""The worked solutions of the sheets `build_*`, for the sheets after them and for the tests."""

from __future__ import annotations

import re
from functools import lru_cache
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
    return dict(_solved(sheet))


@lru_cache(maxsize=16)
def _solved(sheet: str) -> dict[str, Any]:
    sheets = {path.stem: path for path in generator.sources()}
    if sheet not in sheets:
        raise InputError(f"sheet {sheet!r}: not one of them{nearest(sheet, sheets)}; see minglm/course/workshop")
    space: dict[str, Any] = {"__name__": sheet}
    for kind, text in generator.cells(sheets[sheet].read_text(encoding="utf-8"), sheet):
        picture = re.search(r"^show\(", text, flags=re.M)
        defines = generator.BEGIN in text or text.startswith(("import ", "from ", "class ", "def "))
        if kind == "code" and defines and not picture:
            exec(compile(text, sheet, "exec"), space)
    return space
