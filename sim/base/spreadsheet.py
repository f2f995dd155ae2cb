"""Tables as spreadsheets save them: comma, semicolon or tab, any line end, UTF-8 or UTF-16, decimal commas.

>>> read_lines(b"\\xef\\xbb\\xbfa;b\\r\\n1;4321,5\\r\\n", "table.csv")
([['a', 'b'], ['1', '4321,5']], ',')
>>> cell_number("4321,5", ",", "table.csv line 2")
4321.5
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import re
from pathlib import Path

from minglm import numbers
from minglm.errors import InputError
from sim.base.documents import MAX_BYTES, decode_text, read_bytes
from sim.base.units import whole

_SEPARATORS = (";", "\t", ",", "|")
_LOOKED_AT = 10  # lines
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # how .xlsx and .ods begin, and .xls
_COMMA_DECIMAL = re.compile(r"[+-]?\d[\d. '’]*,\d+(?:[eE][+-]?\d+)?")
_POINT_DECIMAL = re.compile(r"[+-]?(?:0|\d[\d,]*)\.(?:\d{1,2}|\d{4,})")  # not three digits: those may be thousands


def read_table(path: str | Path) -> tuple[list[list[str]], str]:
    """(lines of cells, decimal mark) of a table in a file; empty lines are left out.

    Raises:
        InputError: no such file, too large, or no text.
    """
    path = Path(path)
    return read_lines(read_bytes(path, MAX_BYTES, "give a smaller table"), path)


def read_lines(data: bytes, path: str | Path) -> tuple[list[list[str]], str]:
    """(lines of cells, decimal mark) of a table's bytes.

    The separator is the one that a first line `sep=;` names, as Excel writes it, or the one of `;`, tab, `,` and `|`
    that parts one of the first lines into most cells (a title may stand above them). The mark is a comma where a cell
    of the table writes a decimal with one and none with a point.
    """
    if data.startswith(_WORKBOOKS):
        raise InputError(f"{path}: is a workbook, no text; save the sheet as CSV (UTF-8)")
    text = _decoded(data, path)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    named = re.match(r"\s*sep=(.)\n", text, re.I)
    if named:
        text = text[named.end() :]
    first = [line for line in text.split("\n") if line.strip()][:_LOOKED_AT]
    separator = named[1] if named else max(_SEPARATORS, key=lambda s: _widest(first, s))
    try:
        lines = list(csv.reader(io.StringIO(text), delimiter=separator))
    except (csv.Error, ValueError, TypeError) as error:
        raise InputError(f"{path}: is not a table ({error}); check its quotes") from None
    lines = [[_plain(cell) for cell in line] for line in lines]
    cells = [cell for line in lines for cell in line]
    commas = separator != "," and any(_COMMA_DECIMAL.fullmatch(cell) for cell in cells)
    points = any(_POINT_DECIMAL.fullmatch(cell) for cell in cells)
    return [line for line in lines if any(line)], "," if commas and not points else "."


def _widest(lines: list[str], separator: str) -> tuple[int, int]:
    """(cells of the widest line, how many lines are as wide)."""
    widths = [0]
    for line in lines:
        with contextlib.suppress(csv.Error):
            widths.append(len(next(csv.reader([line], delimiter=separator), [])))
    return max(widths), widths.count(max(widths))


def _decoded(data: bytes, path: str | Path) -> str:
    """The text; where it is no UTF-8 and not binary either, by the code page of western Windows, as Excel saves a
    plain CSV. A title in another code page is then unreadable, and the figures are not."""
    try:
        return decode_text(data, path, "a table of comma-, semicolon- or tab-separated values")
    except InputError:
        if re.search(rb"[\x00-\x08\x0e-\x1f]", data):
            raise
        return data.decode("cp1252", errors="replace")


def _plain(cell: str) -> str:
    """A cell without what Excel puts around it: ="8" keeps a text, fixed and narrow spaces part thousands."""
    cell = cell.replace("\u00a0", " ").replace("\u202f", " ").strip()
    formula = re.fullmatch(r'="(.*)"', cell, re.S)
    return formula[1].strip() if formula else cell


def cell_number(cell: str, decimal: str, where: str) -> float:
    """The number of a cell. With a decimal comma '4321,5' is 4321.5, '1.234,5' is 1234.5 and '4.096' is 4096.

    Raises:
        InputError: not a number, or a comma with two readings.
    """
    text = re.sub(r"[\u00a0\u202f ]", "", cell)
    if decimal == "," and re.fullmatch(r"[+-]?[1-9]\d{0,2}(?:\.\d{3})+(?:,\d+)?", text):
        text = text.replace(".", "")
    if decimal == "," and text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    found = numbers.leading_number(text)
    try:
        value = numbers.number(found[0]) if found and not found[1] else math.nan
    except numbers.TwoReadingsError as two:
        both = " or ".join(two.readings)
        raise InputError(f"{where}: {cell!r} has a comma that may part decimals or thousands; write {both}") from None
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {cell[:40]!r} is not a number; give one without a unit, for example 4321.5")
    return value


def cell_whole(cell: str, decimal: str, where: str, dimension: str = "count") -> int:
    """The whole number of a cell; '4.096' of a table without decimal commas is refused with both readings.

    Raises:
        InputError: not a whole number, or one of two readings.
    """
    return whole(cell_number(cell, decimal, where) if decimal == "," else cell, where, -(10**15), dimension=dimension)
