"""Tables as spreadsheets save them: comma, semicolon or tab, any line end, UTF-8 or UTF-16, decimal commas.

>>> read_lines(b"\\xef\\xbb\\xbfa;b\\r\\n1;4321,5\\r\\n", "table.csv")
([['a', 'b'], ['1', '4321,5']], ',')
>>> cell_number("4321,5", ",", "table.csv line 2")
4321.5
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from minglm.errors import InputError
from sim.base.documents import MAX_BYTES, decode_text
from sim.base.units import parse

_SEPARATORS = (";", "\t", ",")


def read_table(path: str | Path) -> tuple[list[list[str]], str]:
    """(lines of cells, decimal mark) of a table in a file; empty lines are left out.

    Raises:
        InputError: no such file, too large, or no text.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: more than {MAX_BYTES:,} bytes; give a smaller table")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    return read_lines(data, path)


def read_lines(data: bytes, path: str | Path) -> tuple[list[list[str]], str]:
    """(lines of cells, decimal mark) of a table's bytes.

    The separator is the one of `;`, tab and `,` that parts the first line into most cells. A table of semicolons or
    tabs may write decimals with a comma: then the mark is a comma.
    """
    text = decode_text(data, path, "a table of comma-, semicolon- or tab-separated values")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    first = next((line for line in text.split("\n") if line.strip()), "")
    separator = max(_SEPARATORS, key=lambda s: len(next(csv.reader([first], delimiter=s), [])))
    try:
        lines = list(csv.reader(io.StringIO(text), delimiter=separator))
    except csv.Error as error:
        raise InputError(f"{path}: is not a table ({error}); check its quotes") from None
    lines = [[cell.strip() for cell in line] for line in lines]
    return [line for line in lines if any(line)], "." if separator == "," else ","


def cell_number(cell: str, decimal: str, where: str) -> float:
    """The number of a cell. With a decimal comma '4321,5' is 4321.5 and '1.234,5' is 1234.5; a point stays a point.

    Raises:
        InputError: not a number, or a comma with two readings.
    """
    text = cell.replace("\u00a0", "").replace("\u202f", "").replace(" ", "")
    if decimal == "," and text.count(",") == 1:
        whole, part = text.split(",")
        if "." not in part:
            text = whole.replace(".", "") + "." + part
    return parse(text, "ratio", where, low=None)
