"""`minglm workshop timing`: run every notebook and write down how long it takes and how much memory its kernel used."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from minglm import atomic, datafiles
from minglm.course.workshop import generator
from minglm.errors import InputError
from minglm.runtime import machine

PARTS = ("learn", "scale", "plan")
PEAK = "from minglm.runtime.machine import peak_rss_bytes as _peak; print(_peak())"


def notebooks(only: str | None = None) -> list[Path]:
    """All notebooks of the course in reading order, or those whose path holds a word.

    Raises:
        InputError: none does.
    """
    found = [p for part in PARTS for p in datafiles.catalogue(datafiles.notebooks(part), ".ipynb").values()]
    chosen = [p for p in found if only is None or only in p.as_posix()]
    if not chosen:
        raise InputError(f"--only {only!r}: no notebook's path holds it; for example --only learn/03")
    return chosen


def measure(full: bool = False, only: str | None = None) -> list[dict]:
    """Run notebooks one after the other; rows of notebook, seconds, peak_mib, figures, error."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINGLM_RUNS"] = str(Path(folder) / "runs")
        os.environ["MINGLM_SMOKE"] = "0" if full else "1"
        for path in notebooks(only):
            book = nbformat.read(generator.runnable(path), as_version=4)
            book.cells.append(nbformat.v4.new_code_cell(PEAK))
            begun, error = time.monotonic(), ""
            try:
                NotebookClient(
                    book,
                    timeout=1800,
                    kernel_name="python3",
                    store_widget_state=False,
                    resources={"metadata": {"path": folder}},
                ).execute()
            except CellExecutionError as err:
                error = str(err).strip().splitlines()[-1]
            outputs = [o for c in book.cells if c.cell_type == "code" for o in c.get("outputs", ())]
            peak = next(
                (
                    int(o["text"])
                    for o in reversed(outputs)
                    if o.output_type == "stream" and o["text"].strip().isdigit()
                ),
                0,
            )
            rows.append(
                {
                    "notebook": path.relative_to(datafiles.notebooks()).as_posix(),
                    "seconds": round(time.monotonic() - begun, 1),
                    "peak_mib": round(peak / 2**20),
                    "error": error,
                    "figures": sum("application/vnd.plotly.v1+json" in o.get("data", {}) for o in outputs),
                }
            )
            print(
                f"{rows[-1]['notebook']}: {rows[-1]['seconds']:.0f} s{' ' + error if error else ''}",
                file=sys.stderr,
                flush=True,
            )
    return rows


def from_book(target: Path, only: str | None = None) -> list[dict]:
    """The same rows at full length, without memory, from a book that `make book` built: it runs every notebook anyway.

    Raises:
        InputError: no book there, or one of short runs; no notebook's path holds `only`.
    """
    noted = target / "seconds.json"
    if not noted.is_file():
        raise InputError(f"{noted}: no book was built there; `make book` builds one and notes the seconds")
    built = {row["notebook"]: row for row in json.loads(noted.read_text(encoding="utf-8"))}
    if any(row["smoke"] for row in built.values()):
        raise InputError(f"{noted}: this book was built in smoke mode; build it at full length with `make book`")
    rows = []
    for path in notebooks(only):
        name = path.relative_to(datafiles.notebooks()).with_suffix("").as_posix()
        if name in built:
            page = (target / "_build" / "html" / f"{name}.html").read_text(encoding="utf-8")
            rows.append(
                {
                    "notebook": f"{name}.ipynb",
                    "seconds": built[name]["seconds"],
                    "peak_mib": None,
                    "error": built[name]["error"],
                    "figures": page.count("Plotly.newPlot("),
                }
            )
    return rows


def table(rows: list[dict]) -> str:
    """As Markdown."""
    if any(r["peak_mib"] is None for r in rows):
        lines = ["| notebook | seconds | figures |", "|---|---:|---:|"]
        lines += [
            f"| {r['notebook']}{' (**failed**)' if r['error'] else ''} | {r['seconds']:.0f} | {r['figures']} |"
            for r in rows
        ]
        lines.append(f"| together | {sum(r['seconds'] for r in rows):.0f} | {sum(r['figures'] for r in rows)} |")
        return "\n".join(lines)
    lines = ["| notebook | seconds | memory of its kernel (MiB) | figures |", "|---|---:|---:|---:|"]
    lines += [
        f"| {r['notebook']}{' (**failed**)' if r['error'] else ''} | {r['seconds']:.0f} | {r['peak_mib']:,} | "
        f"{r['figures']} |"
        for r in rows
    ]
    lines.append(
        f"| together | {sum(r['seconds'] for r in rows):.0f} | {max(r['peak_mib'] for r in rows):,} at most | "
        f"{sum(r['figures'] for r in rows)} |"
    )
    return "\n".join(lines)


def write(rows: list[dict], full: bool) -> Path:
    """notebooks/workshop/timing.md (smoke mode) or timing_full.md, with the machine; rows not measured now stay as they
    are.
    """
    path = datafiles.notebooks("workshop", "timing_full.md" if full else "timing.md")
    measured = {r["notebook"]: r for r in rows}
    if path.is_file():  # with --only the other rows stay
        for name, failed, *numbers in re.findall(
            r"^\| (\S+\.ipynb)( \(\*\*failed\*\*\))? \| ([\d,]+) \|(?: ([\d,]+) \|)? (\d+) \|$",
            path.read_text(encoding="utf-8"),
            flags=re.M,
        ):
            seconds, peak, figures = (int(n.replace(",", "")) if n else None for n in numbers)
            measured.setdefault(
                name,
                {"notebook": name, "seconds": seconds, "peak_mib": peak, "figures": figures, "error": failed.strip()},
            )
    names = [p.relative_to(datafiles.notebooks()).as_posix() for p in notebooks()]
    rows = [measured[n] for n in names if n in measured]
    mode = "at full length" if full else "in smoke mode (the short version that the tests run)"
    command = (
        "`minglm workshop timing --book --write` (or `--full --write`)" if full else "`minglm workshop timing --write`"
    )
    atomic.write_text(
        path,
        f"# How long the notebooks take\n\nEvery notebook {mode}, one after the other, kernel start included. Made by\n"
        f"{command} on {machine.cpu_name()}, {os.cpu_count()} cores.\n\n{table(rows)}\n",
    )
    return path
