"""Fault injection: parts die, disks fill, two write at once; each fault ends in a resumed run or in one clear line.

    python -m minglm.tools.fault_injection          (make drills; about a third of a minute each on 2 cores)

Each trial takes one drill of `minglm/tools/drills` in turn and a random moment, runs real processes in a folder of its
own, and says what was lost. A run's committed result (its last checkpoint, its finished trajectories, its answered
requests) must survive; what may be lost is the work since. The table goes to runs/fault_injection/fault_injection.csv;
with --out data/reference it becomes the recorded one.
"""

from __future__ import annotations

import csv
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from minglm import atomic, datafiles
from minglm.errors import InputError, Parser, nearest
from minglm.runtime import ray
from minglm.runtime.command_line import seed
from minglm.tools.drills import disks, kills, writers
from minglm.tools.drills.processes import Failed, Shared

# Name → drill. Each has the shared preparation and a folder that is not there yet, says what was lost, or raises.
DRILLS: dict[str, Callable[[Shared, Path], str]] = {
    drill.__name__: drill
    for drill in (
        kills.trainer,
        kills.rl_worker,
        kills.server,
        kills.rl_run,
        kills.ray_worker,
        disks.disk_full,
        disks.truncated_shard,
        disks.clock_jump,
        disks.network_disk,
        disks.mapped_reader,
        writers.two_writers,
    )
}
# One round: what may fail in more ways comes more often; two_writers once for each kind of first writer.
KINDS = (
    "trainer",
    "two_writers",
    "rl_worker",
    "server",
    "trainer",
    "two_writers",
    "rl_run",
    "disk_full",
    "trainer",
    "two_writers",
    "ray_worker",
    "truncated_shard",
    "rl_worker",
    "two_writers",
    "network_disk",
    "clock_jump",
    "trainer",
    "two_writers",
    "mapped_reader",
    "rl_run",
)
COUNT = 2 * len(KINDS)


def run(
    count: int,
    out: Path,
    seed: int = 0,
    kinds: tuple[str, ...] = KINDS,
    show: Callable[[str], None] = lambda line: None,
) -> list[dict]:
    """Do `count` trials; rows of number, kind, ok, seconds, what. Written to `out`/fault_injection.csv as they end."""
    out.mkdir(parents=True, exist_ok=True)
    rows, rng = [], random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="minglm-faults") as folder:
        shared = Shared(Path(folder), rng)
        for number in range(1, count + 1):
            kind, began = kinds[(number - 1) % len(kinds)], time.monotonic()
            place = Path(folder) / f"trial{number}"
            place.mkdir()
            try:
                what, ok = DRILLS[kind](shared, place / "run"), True
            except Exception as err:  # whatever went wrong is the trial's result
                what, ok = f"{type(err).__name__}: {err}" if not isinstance(err, Failed) else str(err), False
            rows.append(
                {
                    "number": number,
                    "kind": kind,
                    "ok": ok,
                    "seconds": round(time.monotonic() - began, 1),
                    "what": " ".join(what.split()),
                }
            )
            atomic.write_csv(out / "fault_injection.csv", rows, list(rows[-1]))
            show(f"{number:3} {kind:16} {'ok  ' if ok else 'FAIL'} {rows[-1]['what']}")
    return rows


def about(kind: str) -> str:
    """What a drill does, in a sentence."""
    return " ".join((DRILLS[kind].__doc__ or "").split())


def by_kind(rows: list[dict]) -> list[dict]:
    """Rows of `run`, or of its file, summed up: kind, what it does, trials, how many ended well, median seconds."""
    out = []
    for kind in dict.fromkeys(r["kind"] for r in rows):
        mine = [r for r in rows if r["kind"] == kind]
        out.append(
            {
                "kind": kind,
                "what": about(kind),
                "trials": len(mine),
                "well": sum(str(r["ok"]) == "True" for r in mine),
                "seconds": statistics.median(float(r["seconds"]) for r in mine),
            }
        )
    return out


def read(path: Path | None = None) -> list[dict]:
    """The rows of a finished run, by default of the one that is recorded in data/reference."""
    with open(path or datafiles.data("reference", "fault_injection.csv"), newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    p = Parser(prog="python -m minglm.tools.fault_injection", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--count", type=int, default=COUNT, help=f"how many (default {COUNT}, two rounds)")
    p.add_argument("--seed", type=seed, default=0, help="of the random moments (default 0)")
    p.add_argument("--only", metavar="KIND", help=f"one kind alone: {', '.join(dict.fromkeys(KINDS))}")
    p.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for fault_injection.csv (default runs/fault_injection)",
    )
    try:
        args = p.parse_args(argv)
        kinds = (args.only,) if args.only else KINDS
        if args.count < 1:
            raise InputError(f"--count {args.count}: at least one trial; the default is {COUNT}")
        if args.only and args.only not in KINDS:
            raise InputError(
                f"--only {args.only}: not one of {', '.join(dict.fromkeys(KINDS))}{nearest(args.only, KINDS)}"
            )
        if not hasattr(signal, "SIGKILL"):
            raise InputError(
                "fault injection: processes are killed with SIGKILL, which this system does not have; use Linux or "
                "macOS"
            )
        if "ray_worker" in kinds:
            ray.check()
        args.out = args.out or datafiles.runs("fault_injection")
        rows = run(args.count, args.out, args.seed, kinds, lambda line: print(line, flush=True))
    except InputError as err:
        print(err, file=sys.stderr)
        return 2
    except OSError as err:
        print(f"--out {args.out}: {err.strerror or err}; give a folder that can be written", file=sys.stderr)
        return 2
    for row in by_kind(rows):
        print(f"{row['well']:3} of {row['trials']:<3} {row['kind']:16} {row['what']}")
    good = sum(r["ok"] for r in rows)
    print(f"{good}/{len(rows)} trials ended well")
    return 0 if good == len(rows) else 1


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
