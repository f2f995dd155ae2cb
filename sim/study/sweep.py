"""A grid over any fields of a scenario, one row for each point, in a CSV that an interrupted run goes on from.

    rows = sweep(document, {"plan.tp": [4, 8], "global_tokens": ["32M", "64M"]}, Path("tp.csv"))

Every row is written as soon as it is known, under a key of the scenario and its changes: what is already in the file is
not computed again, a line that a kill cut short is dropped. A point that cannot run is a row with the reason.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from minglm import atomic
from minglm.errors import InputError
from sim.base import parallel_map
from sim.scenario.file import set_path
from sim.scenario.training import resolve
from sim.study.answer import figures, simulate

OUTPUTS = (
    "plan",
    "chips",
    "spares",
    "step_s",
    "tokens_per_s",
    "memory_gib",
    "goodput",
    "days",
    "energy_kwh",
    "carbon_t",
    "rent_usd",
    "own_usd",
    "reason",
)
Complete = Callable[[Mapping], Mapping]
MAX_POINTS = 5_000_000  # of a grid; more is a typing error


def grid(vary: Mapping[str, Sequence]) -> list[dict]:
    """All combinations, the last field fastest."""
    size = 1
    for name, values in vary.items():
        if not isinstance(values, (list, tuple)) or not values:
            raise InputError(
                f"sweep field {name}: {str(values)[:40]!r} is not a list of values; give for example {name}=[1, 2, 4]"
            )
        size *= len(values)
    if not vary or size > MAX_POINTS:
        raise InputError(
            f"a sweep of {size if vary else 0:,} points: give 1 to {MAX_POINTS:,}; name fields with their values, "
            "such as "
            "plan.tp=[4, 8]"
        )
    return [dict(zip(vary, point, strict=True)) for point in itertools.product(*vary.values())]


def key(document: Mapping, changes: Mapping) -> str:
    """Names a point: the same scenario with the same changes has the same key on every machine."""
    text = json.dumps([document, sorted(changes.items(), key=lambda kv: kv[0])], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def point(job: tuple[Mapping, Mapping, Complete | None]) -> dict:
    """One point of the grid: its figures, or the reason why it cannot run."""
    document, changes, complete = job
    row: dict = dict.fromkeys(OUTPUTS, "")
    try:
        for name, value in changes.items():
            document = set_path(document, name.split("."), value)
        if complete is not None:
            document = complete(document)
        answer = figures(simulate(resolve(document, str(document.get("name", "scenario")))))
        row |= {name: answer[name] for name in OUTPUTS if name in answer}
    except InputError as err:
        row["reason"] = " ".join(str(err).split())
    return row


def sweep(
    document: Mapping,
    vary: Mapping[str, Sequence],
    path: Path | None = None,
    engine: str = "local",
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
    address: str | None = None,
    complete: Complete | None = None,
) -> list[dict]:
    """Rows of the whole grid in its order: key, the varied fields, then OUTPUTS.

    Args:
        path: a `.csv` that is gone on with, or a `.parquet` that is written at the end beside its `.csv` (needs
            pyarrow).
        progress: called with the number of points done since the last call (those found in the file first).
        complete: writes the best plan into a document that leaves its plan open (`sim.planner.planner.complete`).
    Raises:
        InputError: an empty field, a file of another sweep, Parquet without pyarrow, or an engine that is not there.
    """
    parallel_map.check(engine)
    points = grid(vary)
    columns = ["key", *vary, *OUTPUTS]
    keys = [key(document, p) for p in points]
    if path is not None and path.suffix == ".parquet":
        _need_pyarrow()
    table = None if path is None else _Table(path.with_suffix(".csv") if path.suffix == ".parquet" else path, columns)
    done = {k: table.rows[k] for k in keys if k in table.rows} if table else {}
    if progress and done:
        progress(len(done))
    missing = [i for i, k in enumerate(keys) if k not in done]
    jobs = [(document, points[i], complete) for i in missing]
    with table or contextlib.nullcontext():
        for job, outputs in parallel_map.run(point, jobs, engine, workers, address):
            i = missing[job]
            assert isinstance(outputs, dict)  # what `point` returns
            done[keys[i]] = row = {"key": keys[i], **{k: _plain(v) for k, v in points[i].items()}, **outputs}
            if table:
                table.write(row)
            if progress:
                progress(1)
    rows = [done[k] for k in keys]
    if path is not None and path.suffix == ".parquet":
        _write_parquet(rows, columns, path)
    return rows


class _Table:
    """The CSV that a sweep goes on with: rows already there by key, and each new one written as soon as it is known."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self.path, self.columns = path, columns
        self.rows = _read(path, columns)

    def __enter__(self) -> _Table:
        self.file = _open(self.path, self.columns)
        self.writer = csv.DictWriter(self.file, self.columns, lineterminator="\n")
        return self

    def write(self, row: Mapping) -> None:
        self.writer.writerow({k: row.get(k, "") for k in self.columns})
        self.file.flush()

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _plain(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value


def _read(path: Path, columns: list[str]) -> dict[str, dict]:
    """Rows already there, by key. A last line that was cut short is removed from the file."""
    if not path.exists() or not path.stat().st_size:
        return {}
    try:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        rows = list(csv.reader(whole.decode("utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(f"{path}: cannot be read ({err}); give another file with --out") from None
    if rows and rows[0] != columns:
        raise InputError(
            f"{path}: holds another sweep (columns {', '.join(rows[0][:6])}…); give another file with --out, or delete "
            "it"
        )
    return {r[0]: {k: _number(v) for k, v in zip(columns, r, strict=True)} for r in rows[1:] if len(r) == len(columns)}


def _number(text: str) -> object:
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        return text


def _open(path: Path, columns: list[str]) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists() or not path.stat().st_size
        file = atomic.appending(path, newline="")
    except OSError as err:
        raise InputError(f"{path}: cannot be written ({err.strerror}); give another file with --out") from None
    if new:
        csv.writer(file, lineterminator="\n").writerow(columns)
        file.flush()
    return file


def _need_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise InputError("a .parquet file needs the pyarrow package; pip install pyarrow, or give a .csv") from None


def _write_parquet(rows: list[dict], columns: list[str], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    def column(name: str) -> list:
        values = [r[name] for r in rows]
        numbers = all(isinstance(v, (int, float)) or v == "" for v in values)
        return [None if v == "" else float(v) for v in values] if numbers else [str(v) for v in values]

    with atomic.beside(path) as place:
        pyarrow.parquet.write_table(pyarrow.table({name: column(name) for name in columns}), place)
