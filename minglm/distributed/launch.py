"""Several processes on this machine without torchrun: the same variables, one bound on every wait.
For notebooks and fault injection.

On a cluster use torchrun, which also brings machines together; what a process sees is the same.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from minglm.errors import InputError
from minglm.training import metrics

LIMIT_S = 300.0


def start(processes: int, arguments: Sequence[str], module: str = "minglm") -> list[subprocess.Popen]:
    """`python -m MODULE ARGUMENTS…` once for each process, with the variables that torchrun sets; one process:
    without them."""
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise InputError(
            f"processes={processes!r}: must be a whole number of at least 1; on this machine {os.cpu_count()} run side "
            f"by side"
        )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    clean = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    } | {"OMP_NUM_THREADS": "1"}
    out = []
    for rank in range(processes):
        mine = (
            {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            if processes > 1
            else {}
        )
        out.append(
            subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=clean | mine,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        )
    return out


def finish(running: Sequence[subprocess.Popen], limit_s: float = LIMIT_S) -> str:
    """Wait for all; returns what the first one printed.

    Raises:
        RuntimeError: one failed (with its last line), or they took longer than `limit_s`; none is left running.
    """
    end = time.monotonic() + limit_s
    outputs: list[tuple[str, str]] = []
    try:
        for p in running:
            outputs.append(p.communicate(timeout=max(1.0, end - time.monotonic())))
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{len(running)} processes had not ended after {limit_s:.0f} s") from None
    finally:
        kill(running)
    for rank, (p, (_, err)) in enumerate(zip(running, outputs, strict=True)):
        if p.returncode:
            last = (err.strip().splitlines() or ["(nothing printed)"])[-1].removeprefix("error: ")
            raise RuntimeError(f"process {rank} ended with {p.returncode}: {last}")
    return outputs[0][0]


def kill(running: Sequence[subprocess.Popen]) -> None:
    """End all without warning, as a power cut does."""
    for p in running:
        if p.poll() is None:
            p.kill()
            p.communicate()


def kill_after(running: Sequence[subprocess.Popen], run_dir: Path, step: int, limit_s: float = LIMIT_S) -> int:
    """Kill all as soon as the run has logged `step` steps; returns how many it had logged in the end."""
    end = time.monotonic() + limit_s
    try:
        while _logged(run_dir) < step:
            if any(p.poll() is not None for p in running) or time.monotonic() > end:
                raise RuntimeError(
                    f"{run_dir}: no step {step}; the processes ended before, or {limit_s:.0f} s were not enough"
                )
            time.sleep(0.01)
    finally:
        kill(running)
    return _logged(run_dir)


def _logged(run_dir: Path) -> int:
    try:
        rows = metrics.read(Path(run_dir) / "metrics.csv")
    except OSError:
        return 0
    return rows[-1]["step"] if rows else 0
