"""`minglm workshop preflight`: five minutes before a class, is this machine ready? One screen, green or what to do.

Takes the checks of `minglm doctor` (without its speed measurement) and adds those of a class: the notebooks are there,
a kernel starts, a picture is drawn, the exercises are what their sources give, a result can be written, the text to
train on is readable, checkpoints are whole.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable

from minglm import datafiles
from minglm.course.workshop import checkpoints, generator, results
from minglm.data import corpus
from minglm.errors import InputError
from minglm.plots import bars, figure
from minglm.runtime import doctor, extras
from minglm.runtime.doctor import Check

MARKS = {"ok": ("ok", "\x1b[32m"), "note": ("note", "\x1b[33m"), "problem": ("NO", "\x1b[31m")}
KERNEL_S = 60.0


def examine() -> list[Check]:
    """All checks in the order they are shown."""
    own: tuple[Callable[[], Check], ...] = (_notebooks, _corpus, _kernel, _picture, _exercises, _results, _checkpoints)
    return [c for c in doctor.examine(measure=False) if c.name not in ("browser", "chromium")] + [
        check() for check in own
    ]


def report(checks: list[Check], colour: bool) -> str:
    """At most one line for each check, and its remedy where there is something to do."""
    lines, width = [], max(len(c.name) for c in checks)
    for c in checks:
        word, tint = MARKS[c.state]
        word = f"{tint}{word:4}\x1b[0m" if colour else f"{word:4}"
        lines.append(f"{word} {c.name:<{width}}  {c.found if len(c.found) <= 70 else c.found[:67] + '...'}")
        if c.remedy and c.state != "ok":
            lines.append(f"     {'':<{width}}  → {c.remedy}")
    problems = [c.name for c in checks if c.state == "problem"]
    lines += [
        "",
        f"NOT READY: mend {', '.join(problems)}"
        if problems
        else f"READY: open JupyterLab with `{datafiles.hint('make lab', 'minglm lab')}`",
    ]
    return "\n".join(lines)


def as_json(checks: list[Check]) -> dict:
    """For machines, as `minglm doctor --json`."""
    return doctor.as_json(checks)


def _notebooks() -> Check:
    count = {part: len(list(datafiles.notebooks(part).glob("*.ipynb"))) for part in ("learn", "scale", "plan")}
    found = ", ".join(f"{n} {part}" for part, n in count.items())
    if not count["learn"]:
        return Check(
            "notebooks",
            "problem",
            found,
            datafiles.hint(
                "restore them with: git checkout -- notebooks",
                "install again with: pip install --force-reinstall minglm",
            ),
        )
    return Check("notebooks", "ok", found)


def _corpus() -> Check:
    try:
        source = corpus.load("stdlib", 300_000)
    except InputError as err:
        return Check(
            "text to train on",
            "problem",
            str(err),
            "use a Python that has its standard library's sources, or corpus folder:PATH",
        )
    return Check("text to train on", "ok", f"{len(source.documents)} files of the standard library read")


def _kernel() -> Check:
    """A real kernel computes with torch, as the first cell of a notebook will."""
    if extras.missing(("jupyter_client", "ipykernel")):
        return Check("kernel", "problem", "jupyter_client or ipykernel missing", datafiles.install_hint("lab"))
    from jupyter_client.manager import start_new_kernel

    begun = time.monotonic()
    try:
        manager, client = start_new_kernel(startup_timeout=KERNEL_S, stderr=subprocess.DEVNULL)
    except Exception as err:
        return Check("kernel", "problem", f"does not start: {err}", "python -m ipykernel install --sys-prefix")
    try:
        printed: list[str] = []
        reply = client.execute_interactive(
            "import torch; print(int(torch.ones(2, 2).sum()))",
            timeout=KERNEL_S,
            output_hook=lambda m: printed.append(m["content"].get("text", "")),
        )
        content = reply["content"]
        if content["status"] != "ok" or "4" not in "".join(printed):
            return Check(
                "kernel",
                "problem",
                f"starts, but torch fails: {content.get('ename')}: {content.get('evalue')}",
                datafiles.install_hint("train"),
            )
    except TimeoutError:
        return Check(
            "kernel", "problem", f"no answer within {KERNEL_S:.0f} s", "close other programs, or restart the machine"
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    seconds = time.monotonic() - begun
    slow = seconds > 20
    return Check(
        "kernel",
        "note" if slow else "ok",
        f"started and computed in {seconds:.0f} s",
        "a first start is slow; try again" if slow else "",
    )


def _picture() -> Check:
    missing = extras.missing(("plotly", "anywidget", "ipywidgets"))
    if missing:
        return Check("pictures", "problem", f"missing {', '.join(missing)}", datafiles.install_hint("lab"))
    size = len(bars(figure("t", "x", "y"), ["a"], [1.0]).to_json())
    return Check("pictures", "ok" if size > 100 else "problem", "plotly, sliders and widgets present", "")


def _exercises() -> Check:
    changed = generator.build(check_only=True)
    if changed:
        return Check(
            "exercises",
            "problem",
            f"{len(changed)} of {2 * len(generator.sources())} notebooks differ from their source",
            "minglm workshop build",
        )
    return Check("exercises", "ok", f"{len(generator.sources())} sheets and their solutions")


def _results() -> Check:
    folder = results.folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as err:
        return Check(
            "results",
            "problem",
            f"{folder}: {err.strerror}",
            "set MINGLM_RESULTS to a folder that this account may write",
        )
    return Check("results", "ok", f"{results.learner()}'s go to {folder}")


def _checkpoints() -> Check:
    try:
        rows = checkpoints.verify()
    except InputError as err:
        return Check(
            "checkpoints",
            "note",
            str(err).split(":")[-1].strip().split(";")[0],
            "minglm workshop checkpoints (then a notebook can start from the one before it)",
        )
    return Check("checkpoints", "ok", f"{len(rows)} whole, {sum(r['bytes'] for r in rows) / 2**20:.1f} MiB")
