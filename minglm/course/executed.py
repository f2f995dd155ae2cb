"""Executed copies of the notebooks, one at a time and kept: a run that was killed goes on with the next one.

Beside each copy `learn/02_mla.ipynb` stands `learn/02_mla.json`: seconds, the error if a cell stopped, and the digest
of what was run. A copy is made again when its notebook, the code or the data changed, or when a cell of it stopped.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

from minglm import atomic, datafiles
from minglm.course.workshop import generator
from minglm.runtime import run_folder

CELL_TIMEOUT_S = 1800


def run(paths: list[Path], folder: Path) -> list[dict]:
    """Execute notebooks that have no copy of today's code in `folder`; what stops does not keep the next from running.

    A notebook that the learner fills in is executed as its solution (`generator.runnable`).

    Returns: a row per notebook with notebook ("learn/02_mla"), seconds, error ("" where every cell ran), smoke, date.
    """
    code, rows = _digest_of_code(), []
    for path in paths:
        name = path.relative_to(datafiles.notebooks()).with_suffix("").as_posix()
        source = generator.runnable(path)
        smoke = os.environ.get("MINGLM_SMOKE") == "1"
        digest = hashlib.sha256(f"{code} {smoke} ".encode() + source.read_bytes()).hexdigest()[:16]
        noted = run_folder.result(folder / f"{name}.json")
        if noted is None or noted["digest"] != digest or noted["error"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            seconds, error = _execute(source, folder / f"{name}.ipynb", folder / "runs")
            noted = {"notebook": name, "seconds": seconds, "error": error, "smoke": smoke}
            noted |= {"date": time.strftime("%Y-%m-%d", time.gmtime()), "digest": digest}
            atomic.write_json(folder / f"{name}.json", noted)
            print(f"{name}: {seconds:.0f} s{' ' + error if error else ''}", file=sys.stderr, flush=True)
        rows.append(noted)
    return rows


def _execute(source: Path, copy: Path, runs: Path) -> tuple[float, str]:
    """Run one notebook in a folder of its own; (seconds, the last line of the error that stopped it or "")."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    book = nbformat.read(source, as_version=4)
    begun, error = time.monotonic(), ""
    # the kernel inherits these; without the renderer a converted page loses its pictures silently
    env = {**os.environ, "PLOTLY_RENDERER": "plotly_mimetype+notebook", "MINGLM_RUNS": str(runs)}
    with tempfile.TemporaryDirectory() as place:
        client = NotebookClient(
            book,
            timeout=CELL_TIMEOUT_S,
            kernel_name="python3",
            store_widget_state=False,
            resources={"metadata": {"path": place}},
        )
        try:
            client.execute(env=env)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as err:
            error = (str(err).strip().splitlines() or [type(err).__name__])[-1]
        except AssertionError as err:  # nbclient's clean-up after a kernel that died asserts that there is one
            error = str(err.__context__ or err).strip() or "the kernel died"
    seconds = round(time.monotonic() - begun, 1)
    atomic.write_text(copy, nbformat.writes(book))
    return seconds, error


def _digest_of_code() -> str:
    """Of every file of the packages and their data: what a notebook shows depends on them."""
    total = hashlib.sha256()
    for folder in (datafiles.package("minglm"), datafiles.package("sim"), datafiles.data()):
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
            total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()
