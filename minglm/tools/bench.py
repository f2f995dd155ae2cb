"""Runs the measurements in tests/bench: prints a table and writes runs/bench/<name>.json.

A bench is a module `tests/bench/bench_*.py` with `NAME: str` and `run() -> list[dict]`; a row has name, value, unit,
and ratio, target and met where there is a target; one that answers a line of `tests/bench/targets.csv` carries what
`minglm.tools.bench_summary.answer` makes. The runner adds the command that repeats it and the machine.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path

from minglm import atomic, datafiles
from minglm.errors import InputError, nearest
from minglm.runtime import machine
from minglm.tools import bench_summary

ROW_KEYS = ("name", "value", "unit", "ratio", "target", "met", "command", "machine")


def discover(folder: Path | None = None) -> dict[str, Path]:
    """Bench name → file. The name is read from the text, so that nothing is imported that will not run.

    Raises:
        InputError: no bench there (an installation without the repository), or two of the same name.
    """
    folder = folder or (datafiles.root() or Path()) / "tests" / "bench"
    by_name: dict[str, Path] = {}
    for path in sorted(folder.glob("bench_*.py")):
        line = next((x for x in path.read_text(encoding="utf-8").splitlines() if x.startswith("NAME")), None)
        if line is None:
            raise InputError(f'{path}: a bench needs a line NAME = "…"; add it')
        name = line.partition("=")[2].split("#")[0].strip().strip("\"'")
        if name in by_name:
            raise InputError(f"{path}: NAME {name!r} is taken by {by_name[name].name}; choose another")
        by_name[name] = path
    if not by_name:
        raise InputError(f"{folder}: no bench_*.py there; run from a clone of the repository")
    return by_name


def run(only: str | None = None, out: Path | None = None, folder: Path | None = None, show: bool = True) -> list[dict]:
    """Run every bench, or the one named `only`; returns all rows.

    Raises:
        InputError: no bench of that name; the nearest is given.
    """
    benches = discover(folder)
    if only is not None and only not in benches:
        raise InputError(f"bench {only!r}: not one of {', '.join(benches)}{nearest(only, benches)}")
    out = out or datafiles.runs("bench")
    out.mkdir(parents=True, exist_ok=True)
    if (root := datafiles.root()) is not None and str(root) not in sys.path:
        sys.path.append(str(root))  # a bench may take from its neighbour: `from tests.bench.bench_model import row`
    rows: list[dict] = []
    for name, path in benches.items():
        if only not in (None, name):
            continue
        started = time.perf_counter()
        spec = importlib.util.spec_from_file_location(f"bench_{name}", path)
        if spec is None or spec.loader is None:
            raise InputError(f"{path}: cannot be imported; a bench is a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        described = {**machine.describe(), "memory_gb_per_s": round(machine.memory_bytes_per_s() / 1e9, 1)}
        described["load_before"] = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        described["cpu_time_of_one_thread"] = bool(os.environ.get("MINGLM_BENCH_CPU_TIME"))
        described["date"] = time.strftime("%Y-%m-%d", time.gmtime())
        own = [
            {key: row.get(key) for key in ROW_KEYS} | row | {"command": f"make bench ONLY={name}", "machine": described}
            for row in module.run()
        ]
        described["bench_s"] = round(time.perf_counter() - started, 1)
        if show:
            print(table(own, f"{name} ({described['bench_s']:.0f} s)"), flush=True)
        atomic.write_json(out / f"{name}.json", own)
        rows += own
    return rows


def summary(out: Path | None = None, folder: Path | None = None, only: str | None = None) -> tuple[list[dict], str]:
    """The one table (`minglm.tools.bench_summary`) from the results in `out`: its rows, and as text.

    Args:
        out: where the results lie (default runs/bench). folder: of the benches. only: one bench's lines.
    Raises:
        InputError: no such folder of results.
    """
    out = out or datafiles.runs("bench")
    if not out.is_dir():
        raise InputError(f"{out}: no results there; run minglm bench first, or name their folder with --out")
    folder = folder or next(iter(discover().values())).parent
    targets = [t for t in bench_summary.read_targets(folder) if only in (None, t.measured_by)]
    rows = bench_summary.read_rows(out)
    lines = bench_summary.summarise(targets, rows)
    return lines, bench_summary.table(lines, rows)


def table(rows: list[dict], title: str = "") -> str:
    """Rows as text, columns aligned; `met` reads yes, no, or a dash where nothing was promised."""
    cells: list[tuple[str, ...]] = [("measurement", "value", "unit", "ratio", "target", "met")]
    for row in rows:
        met = {True: "yes", False: "NO", None: "-"}[row.get("met")]
        cells.append((str(row["name"]), *(_short(row.get(k)) for k in ("value", "unit", "ratio", "target")), met))
    widths = [max(len(c[i]) for c in cells) for i in range(6)]
    lines = [
        "  ".join(c[i].ljust(widths[i]) if i in (0, 2) else c[i].rjust(widths[i]) for i in range(6)).rstrip()
        for c in cells
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join(([title] if title else []) + [rule, lines[0], rule, *lines[1:], rule])


def _short(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
