"""Starting, watching and killing the processes of a drill, and what all drills of one call share."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from minglm.training import metrics

STEPS = 16  # of a training run that is to end
LIMIT_S = 240  # a trial that has not ended by then has hung: it failed


class Failed(Exception):
    """What a trial found wrong."""


def environment(**more: str) -> dict[str, str]:
    """Of every process: one thread, so that runs can be compared bit for bit."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **more}


def minglm(*arguments: str, **keys: object) -> list[str]:
    """A command of ours; `keys` follow as --set KEY=VALUE."""
    sets = (x for k, v in keys.items() for x in ("--set", f"{k}={v}"))
    return [sys.executable, "-m", "minglm", *arguments, *sets]


def train(run: Path, recipe: str = "ci_pretrain", *more: str, **keys: object) -> list[str]:
    """`minglm train` of a tiny model."""
    keys = {"steps": STEPS, "checkpoint_every": 4, "val_every": 100, **keys}
    return minglm("train", recipe, "--run", str(run), "--json", "--device", "cpu", *more, **keys)


def patched(code: str, command: list[str]) -> list[str]:
    """The same command of ours in a process that has run `code` first."""
    run = "import sys; from minglm.cli.main import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", f"{code}\n{run}", *command[3:]]


def run(command: list[str]) -> subprocess.CompletedProcess:
    """The command to its end; one that hangs has failed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment())
    except subprocess.TimeoutExpired:
        raise Failed(f"hung for {LIMIT_S} s: {' '.join(command[2:6])}") from None


def start(command: list[str]) -> subprocess.Popen:
    """The command, leading a session of its own, so that it can be killed with all that it starts."""
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def until(process: subprocess.Popen, ready: Callable[[], bool]) -> bool:
    """Wait for a state; whether it came before the process ended and before the limit."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end and process.poll() is None:
        if ready():
            return True
        time.sleep(0.01)
    return ready()


def kill(process: subprocess.Popen) -> None:
    """SIGKILL, for one process."""
    process.kill()
    process.wait()


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL, for a process that leads a session and for what it started in it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def one_line(done: subprocess.CompletedProcess, what: str, *codes: int) -> str:
    """The one line that a refused command said; anything else has failed."""
    lines = done.stderr.strip().splitlines()
    if done.returncode not in (codes or (2,)) or len(lines) != 1:
        raise Failed(f"{what} ended with {done.returncode} and {done.stderr.strip()[-300:]!r}, not with one line")
    return lines[0]


def steps(folder: Path) -> list[dict]:
    """Rows of metrics.csv without what the clock decides; none where it is not there yet."""
    path = folder / "metrics.csv"
    rows = metrics.read(path) if path.is_file() else []
    return [{k: v for k, v in row.items() if k not in metrics.TIMED} for row in rows]


def events(folder: Path, kind: str) -> list[dict]:
    """The events of one kind of an RL run; a line that its writer's death cut is passed over."""
    path, out = folder / "events.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            out += [event] if event["event"] == kind else []
    return out


class Shared:
    """What the drills of one call share: chance, and preparation that is done once."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.prepared: dict[str, Path] = {}
        self.turns: dict[str, int] = {}

    def turn(self, name: str) -> int:
        """0, 1, 2, … at each call of a drill that takes its cases one after the other."""
        self.turns[name] = self.turns.get(name, -1) + 1
        return self.turns[name]

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """The folder `name`, made when the first one asks for it."""
        if name not in self.prepared:
            self.prepared[name] = self.folder / name
            make(self.prepared[name])
        return self.prepared[name]

    def straight(self, length: int = STEPS) -> Path:
        """An undisturbed training run of so many steps, to compare with."""

        def make(folder: Path) -> None:
            done = run(train(folder, steps=length))
            if done.returncode:
                raise Failed(f"an undisturbed run failed: {done.stderr.strip()[-300:]}")

        return self.once(f"straight{length}", make)

    def warm(self) -> Path:
        """A tiny supervised model that runs of reinforcement learning start from."""

        def make(folder: Path) -> None:
            from minglm.rl.warm_start import WarmStart, warm_start  # needs torch; the table of faults does not

            model = dict(
                hidden_size=32,
                num_hidden_layers=2,
                n_routed_experts=4,
                moe_intermediate_size=16,
                max_position_embeddings=160,
            )
            recipe = WarmStart(task="sum", tail=0.5, steps=3, batch_size=2, seq_len=64, longest=40, model=model)
            warm_start(recipe, folder)

        return self.once("warm", make)

    def rl(self, folder: Path, *more: str, mode: str = "", updates: int = 6) -> list[str]:
        """`minglm rl` of a tiny model; without `mode` one by chance."""
        keys = dict(
            task="sum",
            tail=0.8,
            updates=updates,
            prompts_per_batch=2,
            samples_per_prompt=4,
            max_new_tokens=60,
            max_batch=16,
            eval_problems=0,
            checkpoint_every=2,
            dynamic_filter="false",
            seed=3,
            mode=mode or self.rng.choice(("sync", "april", "async")),
        )
        return minglm("rl", "--run", str(folder), "--init-from", str(self.warm()), "--json", *more, **keys)


def resumes(shared: Shared, folder: Path, command: list[str] | None = None, length: int = STEPS) -> None:
    """The command run again ends well, with the losses of the undisturbed run."""
    done = run(command or train(folder))
    if done.returncode:
        raise Failed(f"the resumed run ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    if steps(folder) != steps(shared.straight(length)):
        raise Failed("the resumed run's losses are not the undisturbed run's")
