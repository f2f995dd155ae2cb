"""Fault injection: parts are killed, disks fill, clocks jump; each fault ends in a resumed run or in one clear line.

    python -m minglm.tools.fault_injection --count 50          (make drills; about a quarter of a minute each on 2
    cores)

Each trial takes one kind in turn and a random moment, runs real processes in a folder of its own, and says what was
lost. A run's committed result (its last checkpoint, its finished trajectories, its answered requests) must survive;
what may be lost is the work since. The table goes to runs/fault_injection/fault_injection.csv; with --out
data/reference it becomes the recorded one.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from minglm import atomic, datafiles
from minglm.errors import InputError, Parser, nearest
from minglm.runtime import ray
from minglm.runtime.command_line import seed
from minglm.training import metrics

STEPS = 16
LIMIT_S = 240  # a trial that has not ended by then has hung: it failed


class Failed(Exception):
    """What a trial found wrong."""


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **more}


def _train(run: Path, **more: str) -> list[str]:
    more = {"steps": str(STEPS), "checkpoint_every": "4", "val_every": "100", **more}
    return [
        sys.executable,
        "-m",
        "minglm",
        "train",
        "ci_pretrain",
        "--run",
        str(run),
        "--json",
        "--device",
        "cpu",
        *(x for k, v in more.items() for x in ("--set", f"{k}={v}")),
    ]


def _run(command: list[str], **kw) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, **{"env": _environment(), **kw})
    except subprocess.TimeoutExpired:
        raise Failed(f"hung for {LIMIT_S} s: {' '.join(command[2:6])}") from None


def _until(process: subprocess.Popen, ready: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end and process.poll() is None and not ready():
        time.sleep(0.01)


def _kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


def _kill_all(process: subprocess.Popen) -> None:
    """A process that leads a session, and what it started in it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _steps(run: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in metrics.TIMED} for row in metrics.read(run / "metrics.csv")]


class Faults:
    """The kinds of fault, one method each; one-time preparation is shared."""

    def __init__(self, folder: Path, rng: random.Random):
        self.folder, self.rng = folder, rng
        self.prepared: dict[str, Path] = {}

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """The folder `name` that all trials share, made when the first one asks for it."""
        if name not in self.prepared:
            self.prepared[name] = self.folder / name
            make(self.prepared[name])
        return self.prepared[name]

    def straight(self) -> Path:
        """An undisturbed training run, to compare with."""

        def make(run: Path) -> None:
            done = _run(_train(run))
            if done.returncode:
                raise Failed(f"an undisturbed run failed: {done.stderr.strip()[-300:]}")

        return self.once("straight", make)

    def warm(self) -> Path:
        """A tiny supervised model that runs of reinforcement learning start from."""

        def make(run: Path) -> None:
            from minglm.rl.warm_start import WarmStart, warm_start  # needs torch; the table of faults does not

            model = dict(
                hidden_size=32,
                num_hidden_layers=2,
                n_routed_experts=4,
                moe_intermediate_size=16,
                max_position_embeddings=160,
            )
            warm_start(WarmStart(task="sum", tail=0.5, steps=3, batch_size=2, seq_len=64, longest=40, model=model), run)

        return self.once("warm", make)

    # ------------------------------------------------------------------ training

    def trainer(self, run: Path) -> str:
        """kill -9 of a training run, anywhere; the resumed run equals the undisturbed one."""
        straight, aim, every = self.straight(), self.rng.randint(0, STEPS - 1), self.rng.choice((1, 4))
        command = _train(run, checkpoint_every=str(every))
        process = subprocess.Popen(command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _until(
            process, lambda: (run / "metrics.csv").is_file() and (run / "metrics.csv").read_bytes().count(b"\n") > aim
        )
        time.sleep(self.rng.random() * 0.05)
        _kill(process)
        logged = len(_steps(run)) if (run / "metrics.csv").is_file() else 0
        kept = max((int(p.name.removeprefix("step_")) for p in (run / "checkpoints").glob("step_*")), default=0)
        if logged - kept > every:
            raise Failed(f"{logged} steps had been logged, the last checkpoint is {kept}: more than {every} lost")
        self._resumes(run, straight, command)
        return (
            f"killed after step {logged}, checkpoint every {every}: {max(0, logged - kept)} steps done again, same "
            "losses"
        )

    def _resumes(self, run: Path, straight: Path, command: list[str] | None = None) -> None:
        done = _run(command or _train(run))
        if done.returncode:
            raise Failed(f"the resumed run ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        if _steps(run) != _steps(straight):
            raise Failed("the resumed run's losses are not the undisturbed run's")

    def disk_full(self, run: Path) -> str:
        """No room for a checkpoint: the run ends with a line, the last good checkpoint stays, and with room it goes
        on.
        """
        straight = self.straight()
        size = sum(f.stat().st_size for f in sorted((straight / "checkpoints").iterdir())[-1].iterdir())
        # a limit on the size of one file stands for a full disk: write() fails in the middle of a file
        limit = self.rng.randint(size // 50, size // 4)
        code = (
            "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
            "from minglm.cli.main import main; sys.exit(main(sys.argv[1:]))"
        )
        shutil.copytree(
            straight.parent / "data", run.parent / "data"
        )  # so that it is the checkpoint that finds no room
        done = _run([sys.executable, "-c", code, *_train(run)[3:]])
        if done.returncode not in (1, 2) or len(done.stderr.strip().splitlines()) != 1:
            raise Failed(
                f"a full disk ended with {done.returncode} and {done.stderr.strip()[-300:]!r}, not with one line"
            )
        self._resumes(run, straight)
        return f"a file of at most {limit:,} bytes: said so in one line; with room, trained to the end"

    def truncated_shard(self, run: Path) -> str:
        """A token shard cut short is named, not trained on."""
        self._resumes(run, self.straight())
        shards = sorted((run.parent / "data").rglob("*.bin")) or sorted(run.rglob("*.bin"))
        if not shards:
            raise Failed("no token shard was found")
        victim = self.rng.choice(shards)
        whole = victim.read_bytes()
        os.truncate(victim, self.rng.randint(0, len(whole) - 1))
        other = run.with_name("again")
        done = _run(_train(other))
        atomic.write_bytes(victim, whole)
        if done.returncode == 0:
            return f"{victim.name} cut short: noticed and made again"
        if done.returncode != 2 or victim.name not in done.stderr or len(done.stderr.strip().splitlines()) != 1:
            raise Failed(f"a truncated {victim.name} ended with {done.returncode} and {done.stderr.strip()[-300:]!r}")
        return f"{victim.name} cut short: named in one line, nothing trained on it"

    def clock_jump(self, run: Path) -> str:
        """The wall clock jumps by a year, forwards and back, while training runs: nothing depends on it."""
        code = (
            "import sys, time, itertools; real, turn = time.time, itertools.count(); time.time = lambda: real() + "
            "(3.2e7 if next(turn) % 3 else -3.2e7); "
            "from minglm.cli.main import main; sys.exit(main(sys.argv[1:]))"
        )
        done = _run([sys.executable, "-c", code, *_train(run)[3:]])
        if done.returncode:
            raise Failed(f"a jumping clock ended the run with {done.returncode}: {done.stderr.strip()[-300:]}")
        if _steps(run) != _steps(self.straight()):
            raise Failed("a jumping clock changed the losses")
        return "the clock jumped by a year at every look: same losses"

    # ------------------------------------------------------------------ RL

    def _rl(self, run: Path) -> list[str]:
        mode = self.rng.choice(("sync", "april", "async"))
        keys = dict(
            task="sum",
            tail=0.8,
            updates=6,
            prompts_per_batch=2,
            samples_per_prompt=4,
            max_new_tokens=60,
            max_batch=16,
            eval_problems=0,
            checkpoint_every=2,
            dynamic_filter="false",
            seed=3,
            mode=mode,
        )
        return [
            sys.executable,
            "-m",
            "minglm",
            "rl",
            "--run",
            str(run),
            "--init-from",
            str(self.warm()),
            "--json",
            *(x for k, v in keys.items() for x in ("--set", f"{k}={v}")),
        ]

    def _events(self, run: Path, kind: str) -> list[dict]:
        path, out = run / "events.jsonl", []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # its writer was killed in the middle of the line
            out += [event] if event["event"] == kind else []
        return out

    def _whole(self, run: Path) -> None:
        updates = {e["update"]: e for e in self._events(run, "update")}
        if sorted(updates) != list(range(1, 7)):
            raise Failed(f"updates {sorted(updates)} were done, not 1 to 6")
        groups = [g for e in updates.values() for g in e["groups"]]
        if len(groups) != len(set(groups)):
            raise Failed("a group was trained on twice")

    def rl_worker(self, run: Path, engine: str = "local") -> str:
        """kill -9 of the rollout worker or the trainer of an RL run: the run goes on by itself."""
        worker = self.rng.choice(("rollout0", "trainer"))
        command, aim, killed = [*self._rl(run), "--engine", engine], self.rng.randint(0, 3), False

        def pids() -> list[int]:
            return [e["pid"] for e in self._events(run, "started") if e["worker"] == worker and e["pid"]]

        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command, env=_environment(), stdout=subprocess.DEVNULL, stderr=errors, text=True, start_new_session=True
            )
            try:
                _until(process, lambda: len(self._events(run, "update")) >= aim and bool(pids()))
                time.sleep(self.rng.random() * 0.3)
                with contextlib.suppress(IndexError, ProcessLookupError):  # it had just ended
                    os.kill(pids()[-1], signal.SIGKILL)
                    killed = True
                code = process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                raise Failed(f"the run hung after its {worker} was killed") from None
            finally:
                _kill_all(process)
            if code:
                errors.seek(0)
                raise Failed(f"the run ended with {code} after its {worker} was killed: {errors.read()[-300:]}")
        self._whole(run)
        lost = sum(e.get("tokens", 0) for e in self._events(run, "lost"))
        return f"{worker} {'killed' if killed else 'had just ended'} at update {aim}; started again, 6 of 6 updates" + (
            f", {lost} tokens done again" if lost else ""
        )

    def rl_run(self, run: Path) -> str:
        """kill -9 of a whole RL run with its workers: started again, it goes on."""
        command = self._rl(run)
        process = subprocess.Popen(
            command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        aim = self.rng.randint(0, 5)
        _until(process, lambda: len(self._events(run, "update")) >= aim)
        time.sleep(self.rng.random() * 0.3)
        _kill_all(process)
        done = _run(command)
        if done.returncode:
            raise Failed(f"the resumed RL run ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        updates = {e["update"] for e in self._events(run, "update")}
        if updates != set(range(1, 7)):
            raise Failed(f"updates {sorted(updates)} were done, not 1 to 6")
        return f"killed at update {aim}; resumed to 6 of 6 updates"

    # ------------------------------------------------------------------ others

    def ray_worker(self, run: Path) -> str:
        """kill -9 of a Ray actor of an RL run: the run goes on by itself."""
        return self.rl_worker(run, "ray")

    def server(self, run: Path) -> str:
        """kill -9 of a server in the middle of an answer: the client hears of it, and after a restart the same port
        answers.
        """
        import socket
        import urllib.error
        import urllib.request

        from minglm.serving import load_test  # needs torch; the table of faults does not

        straight = self.straight()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        body = json.dumps(
            {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 40, "temperature": 0, "stream": True}
        ).encode()

        def ask(url: str):
            return urllib.request.urlopen(
                urllib.request.Request(
                    url + "/chat/completions", data=body, headers={"content-type": "application/json"}
                ),
                timeout=60,
            )

        with load_test.running(straight, "--mode", "dense", "--port", port) as (process, url):
            with ask(url) as answer:
                for _ in range(self.rng.randint(0, 6)):
                    answer.readline()
                _kill(process)
                try:
                    rest = answer.read()
                except OSError:
                    rest = b""
                except Exception:  # http.client.IncompleteRead is no OSError
                    rest = b""
        with load_test.running(straight, "--mode", "dense", "--port", port) as (process, url), ask(url) as answer:
            if not answer.read().rstrip().endswith(b"data: [DONE]"):
                raise Failed("the restarted server did not answer to the end")
        return (
            "killed while answering"
            + ("" if rest.endswith(b"[DONE]\n\n") else ", the client's stream broke off")
            + "; restarted on the same port, answered"
        )


KINDS = (
    "trainer",
    "rl_worker",
    "server",
    "rl_run",
    "disk_full",
    "ray_worker",
    "trainer",
    "rl_worker",
    "truncated_shard",
    "clock_jump",
)


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
        faults = Faults(Path(folder), rng)
        for number in range(1, count + 1):
            kind, began = kinds[(number - 1) % len(kinds)], time.monotonic()
            place = Path(folder) / f"trial{number}"
            place.mkdir()
            try:
                what, ok = getattr(faults, kind)(place / "run"), True
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


def by_kind(rows: list[dict]) -> list[dict]:
    """Rows of `run`, or of its file, summed up: kind, what it does, trials, how many ended well, median seconds."""
    out = []
    for kind in dict.fromkeys(r["kind"] for r in rows):
        mine = [r for r in rows if r["kind"] == kind]
        out.append(
            {
                "kind": kind,
                "what": getattr(Faults, kind).__doc__.strip(),
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
    p.add_argument("--count", type=int, default=50, help="how many (default 50)")
    p.add_argument("--seed", type=seed, default=0, help="of the random moments (default 0)")
    p.add_argument("--only", metavar="KIND", help=f"one kind alone: {', '.join(dict.fromkeys(KINDS))}")
    p.add_argument(
        "--out",
        default="runs/fault_injection",
        metavar="DIR",
        help="folder for fault_injection.csv (default runs/fault_injection)",
    )
    try:
        args = p.parse_args(argv)
        kinds = (args.only,) if args.only else KINDS
        if args.count < 1:
            raise InputError(f"--count {args.count}: at least one trial; the default is 50")
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
        rows = run(args.count, Path(args.out), args.seed, kinds, lambda line: print(line, flush=True))
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
    sys.exit(main())
