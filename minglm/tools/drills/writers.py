"""Two writers of one folder, every pair: the second gets one line and exit code 2, the first loses nothing, and when it
is killed its lock is in nobody's way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from minglm.runtime.run_lock import LOCK
from minglm.tools.drills.processes import (
    Failed,
    Shared,
    events,
    kill_all,
    minglm,
    one_line,
    run,
    start,
    steps,
    train,
    until,
)

ENDLESS = 2000  # steps or updates: more than a trial lasts
# A kernel, as a notebook has one, that runs one cell.
NOTEBOOK = """
import logging, subprocess, sys, warnings
logging.disable()
warnings.simplefilter("ignore")
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name="python3", stderr=subprocess.DEVNULL)
try:
    reply = client.execute_interactive(sys.argv[1], output_hook=lambda message: None)["content"]
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
if reply["status"] == "error":
    print(reply["evalue"], file=sys.stderr)
    sys.exit(2 if reply["ename"] in ("InputError", "Locked") else 1)
"""
CELL = """
from pathlib import Path
from minglm.training import recipe
from minglm.training.loop import train
settings = recipe.load("ci_pretrain", {settings!r})
train(settings, Path({folder!r}), resume={resume}, progress=False, device="cpu")
"""
SETTINGS = {"steps": ENDLESS, "checkpoint_every": 4, "val_every": 1000}


def commands(shared: Shared, folder: Path, overwrite: bool = False) -> dict[str, list[str]]:
    """Each kind of writer as a command that writes in `folder`."""
    more = ("--overwrite",) if overwrite else ()
    cell = CELL.format(settings=SETTINGS, folder=str(folder), resume=not overwrite)
    return {
        "train": train(folder, "ci_pretrain", *more, **SETTINGS),
        "sft": train(folder, "ci_sft", "--init-from", str(shared.straight()), *more, **SETTINGS),
        "rl": shared.rl(folder, *more, mode="sync", updates=ENDLESS),
        "demo": minglm("demo", "--size", "nano", "--quiet", "--run", str(folder), *more),
        "notebook": [sys.executable, "-c", NOTEBOOK, cell],
    }


KINDS = ("train", "rl", "notebook", "demo", "sft")


def _owner(folder: Path) -> int | None:
    """The process in the folder's lock."""
    with contextlib.suppress(OSError, ValueError):
        return int(json.loads((folder / LOCK).read_text(encoding="utf-8"))["pid"])
    return None


def _done(folder: Path) -> int:
    """How far a run is: rows of all its tables and updates."""
    return sum(len(steps(place)) for place in (folder, *folder.glob("*/"))) + len(events(folder, "update"))


def _kill(process: subprocess.Popen, folder: Path) -> None:
    """The writer, wherever it runs: a kernel leads a session of its own."""
    if (pid := _owner(folder)) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    kill_all(process)


def two_writers(shared: Shared, folder: Path) -> str:
    """Two of train, rl, a notebook, demo and sft in one folder, every pair in turn: the second is refused in one line,
    and when the first is killed it can be resumed.
    """
    first = KINDS[shared.turn("two_writers") % len(KINDS)]
    command = commands(shared, folder)[first]
    process = start(command)
    try:
        if not until(process, lambda: _owner(folder) is not None and _done(folder) > 0):
            raise Failed(f"{first} did not begin")
        for overwrite in (False, True):
            for second, its in commands(shared, folder, overwrite).items():
                if overwrite and second != first:
                    continue  # another kind's --overwrite is refused for its kind, as without
                said = one_line(run(its), f"{second}{' --overwrite' * overwrite} beside {first}")
                if second == first and "in use by" not in said:
                    raise Failed(f"a second {first} was refused with {said!r}")
        if process.poll() is not None:
            raise Failed(f"{first} ended with {process.returncode} while others were refused")
    finally:
        _kill(process, folder)
    before = _done(folder)
    again = start(command)
    try:
        if not until(again, lambda: _done(folder) > before):
            raise Failed(f"{first} did not go on after a kill: ended with {again.poll()}")
    finally:
        _kill(again, folder)
    for place in (folder, *folder.glob("*/")):
        numbers = [row["step"] for row in steps(place)]
        if numbers != list(range(1, len(numbers) + 1)):
            raise Failed(f"{place.name}: rows are missing or double: {numbers[:5]} … {numbers[-3:]}")
    return f"{first} first: {', '.join(KINDS)} and its own --overwrite refused in one line; killed, resumed, rows whole"
