"""CSV files of a run that a kill cannot tear: one write per row,
and on resume everything after the checkpoint is cut off.

Floats are written with `repr`, so that two runs can be compared bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path
from typing import Protocol

from minglm import atomic
from minglm.errors import InputError

# step … lr follow from recipe and seed alone; the last two depend on the machine's mood.
COLUMNS = (
    "step",
    "tokens",
    "loss",
    "lm_loss",
    "mtp_loss",
    "balance_loss",
    "indexer_kl",
    "val_loss",
    "load_entropy",
    "load_max_over_mean",
    "dropped_tokens",
    "grad_norm",
    "lr",
    "tokens_per_s",
    "mfu",
)
TIMED = ("tokens_per_s", "mfu")


class Log(Protocol):
    """Where the rows of a run go."""

    def write(self, row: dict) -> None:
        """Take one row."""

    def flush_to_disk(self) -> None:
        """Make sure that what was written outlives a power cut."""

    def close(self) -> None:
        """Write no more."""


class CsvLog:
    """Append-only CSV whose first column is the step."""

    def __init__(self, path: Path, columns: tuple[str, ...], after_step: int) -> None:
        """Open for appending rows with steps above `after_step`;
        later or torn rows of an earlier attempt are dropped."""
        self.path, self.columns = path, columns
        rows, damaged = _parsed(path) if path.is_file() and after_step else ([], 0)
        if damaged:
            print(f"{path}: {damaged} damaged row{'s' * (damaged > 1)} left out", file=sys.stderr)
        kept = [row for row in rows if row["step"] <= after_step]
        with atomic.opened(path, newline="", durable=True) as out:
            out.write(",".join(columns) + "\n")
            out.writelines(self._line(row) for row in kept)
        self._file = atomic.appending(path, newline="")

    def _line(self, row: dict) -> str:
        return ",".join("" if (v := row.get(c)) is None else repr(v) for c in self.columns) + "\n"

    def write(self, row: dict) -> None:
        """Append a row; columns it does not have stay empty."""
        self._file.write(self._line(row))
        self._file.flush()

    def flush_to_disk(self) -> None:
        """Before a checkpoint: rows must not be younger than what they are a record of."""
        atomic.sync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: str | Path) -> list[dict]:
    """Rows of a CSV of numbers: int or float, None where empty. A torn last line, and what a disk damaged, are left
    out.

    Raises:
        InputError: its first line names no step, so no row can be read.
    """
    return _parsed(path)[0]


def _parsed(path: str | Path) -> tuple[list[dict], int]:
    """The rows that can be read, and how many whole lines cannot."""
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        text = file.read()
    lines = [line.rstrip("\r").split(",") for line in text.split("\n")[:-1]]  # what follows the last line end is torn
    if not lines:
        return [], 0
    columns, rows = lines[0], []
    if "step" not in columns:
        raise InputError(f"{path}: damaged, its first line names no columns; move the file away and run the same again")
    for cells in lines[1:]:
        with contextlib.suppress(ValueError):  # too few or too many cells, or one that is no number
            row = {name: _number(cell) for name, cell in zip(columns, cells, strict=True)}
            rows += [row] if isinstance(row["step"], int) else []
    return rows, len(lines) - 1 - len(rows)


def _number(text: str) -> int | float | None:
    if text == "":
        return None
    try:
        return int(text)
    except ValueError:
        return float(text)


def load_statistics(counts: list[list[int]]) -> tuple[float, float]:
    """(entropy, max over mean) of expert loads, averaged over layers.

    Entropy is divided by ln E: 1 is an even load, 0 one expert for all. counts: (layers, E) tokens per expert.
    """
    entropies, peaks = [], []
    for layer in counts:
        total = sum(layer)
        if not total:
            continue
        shares = [n / total for n in layer]
        entropies.append(-sum(s * math.log(s) for s in shares if s) / math.log(len(layer)) if len(layer) > 1 else 1.0)
        peaks.append(max(shares) * len(layer))
    n = max(1, len(entropies))
    return sum(entropies) / n, sum(peaks) / n
