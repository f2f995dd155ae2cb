"""Processes die without a word: a trainer, a worker, a whole run, a server in the middle of an answer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from minglm.runtime import loopback
from minglm.tools.drills.processes import (
    LIMIT_S,
    STEPS,
    Failed,
    Shared,
    environment,
    events,
    kill,
    kill_all,
    resumes,
    run,
    start,
    steps,
    train,
    until,
)


def trainer(shared: Shared, folder: Path) -> str:
    """kill -9 of a training run, anywhere; the resumed run equals the undisturbed one."""
    shared.straight()
    aim, every = shared.rng.randint(0, STEPS - 1), shared.rng.choice((1, 4))
    command = train(folder, checkpoint_every=every)
    process = start(command)
    until(process, lambda: len(steps(folder)) >= aim)
    time.sleep(shared.rng.random() * 0.05)
    kill_all(process)
    logged = len(steps(folder))
    kept = max((int(p.name.removeprefix("step_")) for p in (folder / "checkpoints").glob("step_*")), default=0)
    if logged - kept > every:
        raise Failed(f"{logged} steps had been logged, the last checkpoint is {kept}: more than {every} lost")
    resumes(shared, folder, command)
    lost = max(0, logged - kept)
    return f"killed after step {logged}, checkpoint every {every}: {lost} steps done again, same losses"


def whole(folder: Path) -> None:
    """All six updates of an RL run are there, and no group was trained on twice."""
    updates = {e["update"]: e for e in events(folder, "update")}
    if sorted(updates) != list(range(1, 7)):
        raise Failed(f"updates {sorted(updates)} were done, not 1 to 6")
    groups = [g for e in updates.values() for g in e["groups"]]
    if len(groups) != len(set(groups)):
        raise Failed("a group was trained on twice")


def rl_worker(shared: Shared, folder: Path, engine: str = "local") -> str:
    """kill -9 of the rollout worker or the trainer of an RL run: the run goes on by itself."""
    worker = shared.rng.choice(("rollout0", "trainer"))
    command, aim, killed = shared.rl(folder, "--engine", engine), shared.rng.randint(0, 3), False

    def pids() -> list[int]:
        return [e["pid"] for e in events(folder, "started") if e["worker"] == worker and e["pid"]]

    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.DEVNULL, stderr=errors, text=True, start_new_session=True
        )
        try:
            until(process, lambda: len(events(folder, "update")) >= aim and bool(pids()))
            time.sleep(shared.rng.random() * 0.3)
            with contextlib.suppress(IndexError, ProcessLookupError):  # it had just ended
                os.kill(pids()[-1], signal.SIGKILL)
                killed = True
            code = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            raise Failed(f"the run hung after its {worker} was killed") from None
        finally:
            kill_all(process)
        if code:
            errors.seek(0)
            raise Failed(f"the run ended with {code} after its {worker} was killed: {errors.read()[-300:]}")
    whole(folder)
    lost = sum(e.get("tokens", 0) for e in events(folder, "lost"))
    return f"{worker} {'killed' if killed else 'had just ended'} at update {aim}; started again, 6 of 6 updates" + (
        f", {lost} tokens done again" if lost else ""
    )


def ray_worker(shared: Shared, folder: Path) -> str:
    """kill -9 of a Ray actor of an RL run: the run goes on by itself."""
    return rl_worker(shared, folder, "ray")


def rl_run(shared: Shared, folder: Path) -> str:
    """kill -9 of an RL run, with its workers or above them: started again at once, it goes on."""
    command, alone = shared.rl(folder), shared.rng.random() < 0.5
    process, aim = start(command), shared.rng.randint(0, 5)
    until(process, lambda: len(events(folder, "update")) >= aim)
    time.sleep(shared.rng.random() * 0.3)
    (kill if alone else kill_all)(process)  # alone: its workers still live when the next one starts
    try:
        done = run(command)
    finally:
        kill_all(process)
    if done.returncode:
        raise Failed(f"the resumed RL run ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    whole(folder)
    return f"killed {'above its workers' if alone else 'whole'} at update {aim}; resumed to 6 of 6 updates"


def server(shared: Shared, folder: Path) -> str:
    """kill -9 of a server in the middle of an answer: the client hears of it, and after a restart the same port
    answers.
    """
    import socket
    import urllib.request

    from minglm.serving import load_test  # needs torch; the table of faults does not

    straight = shared.straight()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    body = json.dumps(
        {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 40, "temperature": 0, "stream": True}
    ).encode()

    def ask(url: str):
        request = urllib.request.Request(url + "/chat/completions", body, {"content-type": "application/json"})
        return loopback.urlopen(request, timeout=60)

    with load_test.running(straight, "--mode", "dense", "--port", port) as (process, url), ask(url) as answer:
        for _ in range(shared.rng.randint(0, 6)):
            answer.readline()
        kill(process)
        try:
            rest = answer.read()
        except Exception:  # OSError, or http.client.IncompleteRead, which is none
            rest = b""
    with load_test.running(straight, "--mode", "dense", "--port", port) as (process, url), ask(url) as answer:
        if not answer.read().rstrip().endswith(b"data: [DONE]"):
            raise Failed("the restarted server did not answer to the end")
    broke = "" if rest.endswith(b"[DONE]\n\n") else ", the client's stream broke off"
    return f"killed while answering{broke}; restarted on the same port, answered"
