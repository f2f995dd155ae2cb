"""Reading recorded tables: the CSV files of `data/reference`, and those that the same commands write elsewhere."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from minglm.errors import InputError

T = TypeVar("T")


def read_rows(path: Path, row: Callable[[dict[str, str]], T], module: str) -> list[T]:
    """The rows of a CSV, each as `row` makes it of the texts under its columns.

    Args:
        module: the recorder that writes such a file, as `python -m` takes it.

    Raises:
        InputError: no such file, or a row that is none.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [row(line) for line in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as err:
        raise InputError(f"{path}: cannot be read ({err}); make it with python -m {module}") from None


def number(text: str) -> int | float | str:
    """A cell as a whole number, else as a number, else as the text that it is.

    >>> number("3"), number("0.5"), number("plain")
    (3, 0.5, 'plain')
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def numbers(line: dict[str, str]) -> dict[str, int | float | str]:
    """A row with its numbers as numbers."""
    return {column: number(text) for column, text in line.items()}
