"""`make hub-check`: a class on a real JupyterHub: three learners, one installation, each with a copy of the course.

The hub and the proxy run here, from an environment of their own (`--hub`, made by the target); kernels run in this
one. Three learners at the same time get their copies, run three notebooks through the proxy, and save a change; after a
restart of their servers the change is still there. With `--accounts` (root only) each learner is an account of the
system, made for the check and removed after it; without, all servers run as whoever runs the check.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minglm import atomic, datafiles
from minglm.course.workshop import generator, kernels, results
from minglm.course.workshop.hub_client import Client, Kernel, Refused, code_cells
from minglm.errors import InputError, Parser
from minglm.runtime import machine

LEARNERS = ("minglm-anna", "minglm-bo", "minglm-chen")
NOTEBOOKS = ("learn/00_start_here", "learn/03_lightning_indexer", "learn/build_1_layers")
STALL_S = 120.0  # who computes less than A_MOVE_S in so long waits for something that does not come
A_MOVE_S = 1.0
Used = Callable[[], float | None]  # processor seconds so far
COURSE = "course"  # folder of the copy in a learner's home
ABOUT_ME = (
    "import os, pathlib, minglm\n"
    "from minglm import datafiles\n"
    "from minglm.runtime.machine import peak_rss_bytes\n"
    "mine = pathlib.Path(minglm.__file__)\n"
    "print(os.getpid(), os.getuid(), int(os.access(mine, os.W_OK)), peak_rss_bytes(), mine, datafiles.runs(), sep='|')"
)


@dataclass
class Log:
    """What the check has seen: (sentence, whether it holds), and memory by notebook in MiB."""

    checks: list[tuple[str, bool]] = field(default_factory=list)
    memory: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)  # peak, resident, proportional
    seconds: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, set[int]] = field(default_factory=dict)
    servers: list[float] = field(default_factory=list)
    house: dict[str, float] = field(default_factory=dict)

    def expect(self, sentence: str, holds: bool) -> None:
        """Note a check and print it."""
        self.checks.append((sentence, holds))
        print(f"  {'ok    ' if holds else 'FAILED'}  {sentence}", flush=True)


def _own_seconds(process: subprocess.Popen) -> float | None:
    """Processor seconds of a process of ours, None after its end."""
    import psutil

    if process.poll() is not None:
        return None
    return float(sum(psutil.Process(process.pid).cpu_times()[:2]))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, of this machine alone."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def configuration(scratch: Path, hub: Path, ports: list[int], token: str, accounts: bool) -> str:
    """The text of jupyterhub_config.py. Every learner's server begins by bringing the copy of the course up to date."""
    spawner = "jupyterhub.spawner.LocalProcessSpawner" if accounts else "simple"
    return f"""# Written by minglm.course.workshop.hub
c = get_config()  # noqa
c.JupyterHub.bind_url = "http://127.0.0.1:{ports[0]}"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:{ports[1]}"
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{ports[2]}"
c.ConfigurableHTTPProxy.command = [{str(proxy(hub))!r}]
c.JupyterHub.db_url = "sqlite:///{scratch}/hub.sqlite"
c.JupyterHub.cookie_secret_file = "{scratch}/cookie_secret"
c.ConfigurableHTTPProxy.pid_file = "{scratch}/proxy.pid"
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allowed_users = set({LEARNERS!r})
c.JupyterHub.spawner_class = {spawner!r}
c.SimpleLocalProcessSpawner.home_dir_template = "{scratch}/home/{{username}}"
c.Spawner.cmd = ["{scratch}/start.sh"]
c.Spawner.default_url = "/lab"
c.Spawner.start_timeout = c.Spawner.http_timeout = 3600  # the check itself ends what stands still
c.Spawner.environment = {{
    "JUPYTER_PATH": "{scratch}/share/jupyter",
    "MINGLM_RESULTS": "{scratch}/results",
    "MINGLM_SMOKE": {_smoke()!r},
    "PATH": "{hub}/bin:" + {os.environ.get("PATH", os.defpath)!r},
}}
c.JupyterHub.services = [{{"name": "check", "api_token": {token!r}}}]
c.JupyterHub.load_roles = [{{
    "name": "check",
    "scopes": ["admin:users", "admin:servers", "access:servers", "tokens"],
    "services": ["check"],
}}]
"""


def _smoke() -> str:
    """Whether notebooks run in smoke mode, as their first cell asks; MINGLM_SMOKE=0 runs them at full length."""
    return os.environ.get("MINGLM_SMOKE", "1")


def proxy(hub: Path) -> Path:
    """The program of configurable-http-proxy that npm put into the hub's environment."""
    return hub / "node_modules" / ".bin" / "configurable-http-proxy"


def prepare(scratch: Path, hub: Path, ports: list[int], token: str, accounts: bool) -> Path:
    """Write configuration, kernel and start script into `scratch`; returns the configuration.

    Raises:
        InputError: hub or proxy are missing.
    """
    for program in (hub / "bin" / "jupyterhub", proxy(hub)):
        if not program.is_file():
            raise InputError(f"{program}: not there; `make hub-check` installs it")
    scratch.chmod(0o755)
    (scratch / "home").mkdir()
    (scratch / "results").mkdir()
    (scratch / "results").chmod(0o1777)
    root = datafiles.package("minglm").parent
    kernel = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
        "env": {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    }
    place = scratch / "share" / "jupyter" / "kernels" / "python3"
    place.mkdir(parents=True)
    atomic.write_json(place / "kernel.json", kernel)
    start = scratch / "start.sh"
    root_too = "" if accounts else " --allow-root"  # in a container whoever runs the check is often root
    atomic.write_text(
        start,
        f'#!/bin/sh\ncd "$HOME" && PYTHONPATH="{root}" "{sys.executable}" -m minglm course "$HOME/{COURSE}" || exit 1\n'
        f'exec "{hub}/bin/jupyterhub-singleuser"{root_too} "$@"\n',
    )
    start.chmod(0o755)
    config = scratch / "jupyterhub_config.py"
    atomic.write_text(config, configuration(scratch, hub, ports, token, accounts))
    return config


def open_to_all(path: Path) -> bool:
    """Whether any account may run or read `path`: each folder above it may be entered by others, links followed."""
    real = path.resolve()
    folders = all(folder.stat().st_mode & 0o001 for folder in real.parents)
    return folders and bool(real.stat().st_mode & 0o004)


def _reachable(hub: Path) -> None:
    """Refuse what three accounts could not run.

    Raises:
        InputError: an interpreter or this installation lies in a folder that is closed to others.
    """
    for path in (Path(sys.executable), hub / "bin" / "python", Path(datafiles.__file__)):
        if not open_to_all(path):
            raise InputError(
                f"{path}: leads to {path.resolve()}, where other accounts may not go; install with a Python that all "
                "may run (make hub-check PYTHON=/usr/bin/python3 after make clean), or leave --accounts out"
            )


def processor_seconds(hub_pid: int, learner: str) -> float | None:
    """What the living processes of a learner, server and kernels, have computed so far; None where none lives."""
    import psutil

    found = []
    for process in psutil.Process(hub_pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            if process.environ().get("JUPYTERHUB_USER") == learner:
                found.append(sum(process.cpu_times()[:2]))
    return sum(found) if found else None


def wait_for(what: str, ready: Callable[[], bool], used: Used, stall_s: float = STALL_S) -> None:
    """Ask until it is ready, as long as what is waited for gets on: a slow machine takes longer, a dead one ends it.

    Args:
        used: processor seconds of what is waited for, or None where no process of it lives.

    Raises:
        InputError: its process ended, or computed less than a second in the last `stall_s` seconds.
    """
    before, since = used(), time.monotonic()
    while not ready():
        now = used()
        if now is None and before is not None:
            raise InputError(f"{what}: its process ended before it answered")
        if now is not None and (before is None or abs(now - before) >= A_MOVE_S):
            before, since = now, time.monotonic()
        elif time.monotonic() - since > stall_s:
            raise InputError(f"{what}: stands still, less than a second of processor time in {stall_s:.0f} s")
        time.sleep(0.5)


def last_words(output: Path) -> str:
    """What the hub's log says of an end: its last line of level critical or error, else its last line."""
    lines = [line for line in output.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    serious = [line for line in lines if line.startswith(("[C ", "[E "))]
    return (serious or lines or ["its log is empty"])[-1][:300]


def _serve(admin: Client, learner: str, used: Used) -> None:
    """Start a learner's server and wait until it answers."""
    admin.call("POST", f"/hub/api/users/{learner}/server")
    wait_for(
        f"{learner}'s server",
        lambda: bool((admin.call("GET", f"/hub/api/users/{learner}")["servers"].get("") or {}).get("ready")),
        used,
    )


def _stop(admin: Client, learner: str) -> None:
    admin.call("DELETE", f"/hub/api/users/{learner}/server")
    wait_for(f"{learner}'s end", lambda: not admin.call("GET", f"/hub/api/users/{learner}")["servers"], lambda: 0.0)


def _facts(kernel: Kernel, used: Used) -> dict[str, Any]:
    """Process, account, whether the installation can be written, peak memory, where it lies, where runs go."""
    pid, uid, writes, peak, place, runs = kernel.run([ABOUT_ME], used).printed.strip().split("|")
    return {"pid": int(pid), "uid": int(uid), "writes": writes == "1", "peak": int(peak), "place": place, "runs": runs}


def _lesson(client: Client, learner: str, names: tuple[str, ...], used: Used) -> list[dict[str, Any]]:
    """One learner's lesson: each notebook of the own copy in a kernel of its own, which stays until all are done."""
    rows: list[dict[str, Any]] = []
    alive: list[Kernel] = []
    for name in names:
        path = f"{COURSE}/{name}.ipynb"
        book = client.call("GET", f"/user/{learner}/api/contents/{path}?type=notebook")["content"]
        solved = datafiles.notebooks(f"{name}.ipynb")
        if generator.is_blank(solved):  # the learner has typed: the sheet with its blanks filled in
            path = f"{COURSE}/workshop/solutions/{solved.name}"
            book = client.call("GET", f"/user/{learner}/api/contents/{path}?type=notebook")["content"]
        kernel = Kernel.start(client, learner, str(Path(path).parent))
        ran = kernel.run(code_cells(book), used)
        rows.append({"notebook": name, "ran": ran, "facts": _facts(kernel, used), "kernel": kernel})
        alive.append(kernel)
    for row in rows:
        row["weight"] = kernels.weigh(row["facts"]["pid"])
    for kernel in alive:
        kernel.stop()
    return rows


def check(clients: dict[str, Client], used: dict[str, Used], names: tuple[str, ...], accounts: bool, log: Log) -> None:
    """Everything that a class does on the hub, and the controls beside it."""
    first, second = LEARNERS[:2]
    own = clients[first].status("GET", f"/user/{first}/api/status")
    others = clients[first].status("GET", f"/user/{second}/api/status")
    log.expect(f"{first}'s token opens {first}'s server ({own}) and not {second}'s ({others})", own == 200 != others)
    note = f"/user/{{}}/api/contents/{COURSE}/{NOTEBOOKS[0]}.ipynb"
    book = clients[first].call("GET", note.format(first) + "?type=notebook")["content"]
    book["cells"].append({"cell_type": "markdown", "id": "mine", "metadata": {}, "source": "My own note."})
    clients[first].call("PUT", note.format(first), {"type": "notebook", "format": "json", "content": book})
    before = [len(clients[n].call("GET", note.format(n) + "?type=notebook")["content"]["cells"]) for n in LEARNERS]
    log.expect(
        f"a cell that {first} added is in {first}'s copy alone", before == [len(book["cells"])] + [before[1]] * 2
    )

    begun = time.monotonic()
    with ThreadPoolExecutor(len(LEARNERS)) as pool:
        lessons = dict(zip(LEARNERS, pool.map(lambda n: _lesson(clients[n], n, names, used[n]), LEARNERS), strict=True))
    log.house["lesson_s"] = time.monotonic() - begun
    for name, rows in zip(names, zip(*lessons.values(), strict=True), strict=True):
        errors = [r["ran"].error for r in rows if r["ran"].error]
        log.seconds[name] = [r["ran"].seconds for r in rows]
        log.figures[name] = {r["ran"].figures for r in rows}
        log.memory[name] = [(r["facts"]["peak"] / 2**20, *(w / 2**20 for w in r["weight"])) for r in rows]
        log.expect(
            f"{name} runs for three learners at once, {_numbers(log.figures[name])} pictures"
            + (f"; {errors[0]}" if errors else ""),
            not errors and min(log.figures[name]) > 0,
        )
    facts = [r["facts"] for rows in lessons.values() for r in rows]
    uids, places, runs = ({f[key] for f in facts} for key in ("uid", "place", "runs"))
    log.expect("all kernels use one installation", len(places) == 1)
    if accounts:
        sealed = not any(f["writes"] for f in facts)
        log.expect("three accounts, none of which may write the installation", len(uids) == 3 and sealed)
        log.expect("each writes its runs into a place of its own", len(runs) == 3)


def _numbers(values: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(set(values))))


def _controls(clients: dict[str, Client], admin: Client, used: dict[str, Used], scratch: Path, log: Log) -> None:
    """What must fail fails, and what must last lasts."""
    first, second = LEARNERS[:2]
    kernel = Kernel.start(clients[second], second, COURSE)
    broken = kernel.run(["1 / 0", "print('on')"], used[second])
    kernel.stop()
    log.expect("control: a cell that divides by zero is seen", broken.error.startswith("ZeroDivisionError"))
    books = results.collect(scratch / "results")
    solved = {b["learner"]: sum(e["right"] for e in b["exercises"].values()) for b in books}
    log.expect(
        f"the teacher's table names the three learners, {_numbers(solved.values())} exercises solved by each",
        set(solved) == set(LEARNERS) and min(solved.values()) > 0,
    )
    path = f"/user/{first}/api/contents/{COURSE}/{NOTEBOOKS[0]}.ipynb?type=notebook"
    _stop(admin, first)
    _serve(admin, first, used[first])
    cells = clients[first].call("GET", path)["content"]["cells"]
    log.expect(
        "after a restart, which updates the copy, the learner's own cell is there",
        cells[-1]["source"] == "My own note.",
    )


def _weights(pids: list[int]) -> float:
    """Proportional memory of processes and their children, MiB; kernels left out, which are counted by notebook."""
    import psutil

    total = 0.0
    for pid in pids:
        total += kernels.weigh(pid)[1] / 2**20
        for child in psutil.Process(pid).children(recursive=True):
            if "ipykernel" not in " ".join(child.cmdline()):
                total += kernels.weigh(child.pid)[1] / 2**20
    return total


def _servers(hub_pid: int) -> list[float]:
    """Proportional memory of each learner's server, MiB."""
    import psutil

    tree = psutil.Process(hub_pid).children(recursive=True)
    return [kernels.weigh(p.pid)[1] / 2**20 for p in tree if "jupyterhub-singleuser" in " ".join(p.cmdline())]


def _accounts(scratch: Path, make: bool) -> None:
    """Make the learners' accounts, each with a home of its own, or remove them."""
    for name in LEARNERS:
        command = ["useradd", "--create-home", "--base-dir", str(scratch / "home"), name] if make else ["userdel", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if make and done.returncode:
            raise InputError(f"{name}: no account ({done.stderr.strip()}); run as root, or leave --accounts out")


def run(hub: Path, accounts: bool, names: tuple[str, ...] = NOTEBOOKS) -> Log:
    """Start everything, check it, end it.

    Raises:
        InputError: hub or proxy are missing, an account cannot be made, or something does not start.
    """
    if accounts:
        _reachable(hub)
    scratch = Path(tempfile.mkdtemp(prefix="minglm-hub-"))
    log, token, ports = Log(), os.urandom(16).hex(), free_ports(3)
    admin = Client(f"http://127.0.0.1:{ports[0]}", token)
    config = prepare(scratch, hub, ports, token, accounts)
    output = scratch / "hub.log"
    print(f"the hub's log: {output}", flush=True)
    process = None
    try:
        if accounts:
            _accounts(scratch, make=True)
        with atomic.appending(output) as file:
            begun = time.monotonic()
            process = subprocess.Popen(
                [str(hub / "bin" / "jupyterhub"), "-f", str(config)], cwd=scratch, stdout=file, stderr=file
            )
        own = process  # which the functions below ask about
        wait_for("the hub", lambda: admin.status("GET", "/hub/api/") == 200, lambda: _own_seconds(own))
        log.house["hub_s"] = time.monotonic() - begun
        log.house["version"] = float(".".join(admin.call("GET", "/hub/api/")["version"].split(".")[:2]))
        clients = {}
        for name in LEARNERS:
            made = admin.call("POST", f"/hub/api/users/{name}/tokens", {"note": "hub-check"})
            clients[name] = Client(admin.base, made["token"])
        used: dict[str, Used] = {name: functools.partial(processor_seconds, own.pid, name) for name in LEARNERS}
        begun = time.monotonic()
        with ThreadPoolExecutor(len(LEARNERS)) as pool:
            list(pool.map(lambda name: _serve(admin, name, used[name]), LEARNERS))
        log.house["servers_s"] = time.monotonic() - begun
        log.expect(f"hub {log.house['version']}, proxy and {len(LEARNERS)} servers are up", True)
        check(clients, used, names, accounts, log)
        log.servers = _servers(process.pid)
        log.house["hub_mib"] = _weights([process.pid]) - sum(log.servers)
        _controls(clients, admin, used, scratch, log)
        for name in LEARNERS:
            _stop(admin, name)
    except Refused as err:
        log.expect(f"the hub answers: {err}", False)
    except InputError as err:
        raise InputError(f"{err}; the hub's log ends: {last_words(output)}" if output.is_file() else str(err)) from None
    finally:
        if process is not None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        if accounts:
            _accounts(scratch, make=False)
        if all(holds for _, holds in log.checks):
            shutil.rmtree(scratch, ignore_errors=True)
    return log


def report(log: Log, accounts: bool) -> str:
    """The log as a page."""
    version, kept = log.house.get("version", 0.0), [sum(m[2] for m in rows) for rows in log.memory.values()]
    server = max(log.servers, default=0.0)
    one = server + sum(max(m[2] for m in rows) for rows in log.memory.values())
    largest = server + max((max(m[2] for m in rows) for rows in log.memory.values()), default=0.0)
    lines = [
        "# Three learners on a JupyterHub",
        "",
        f"`make hub-check{' ARGS=--accounts' if accounts else ''}` on {time.strftime('%Y-%m-%d', time.gmtime())}, "
        f"{machine.cpu_name()}, {os.cpu_count()} cores: JupyterHub {version:g}, configurable-http-proxy,",
        ("three accounts of the system" if accounts else "three learners under one account")
        + ", one installation, each learner with a copy of the course, notebooks in",
        f"{'smoke mode' if _smoke() == '1' else 'full length'}, all three learners at the same time, every request "
        "through the proxy.",
        "",
        "| check | |",
        "|---|---|",
        *(f"| {sentence} | {'ok' if holds else '**failed**'} |" for sentence, holds in log.checks),
        "",
        "Memory of a kernel after the notebook, MiB: the most it ever held, what is resident, and that with shared",
        "pages divided among their users; the largest of the three learners. Seconds are the slowest learner's.",
        "",
        "| notebook | seconds | most | resident | shared pages divided |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, rows in log.memory.items():
        most, resident, shared = (max(m[i] for m in rows) for i in range(3))
        lines.append(f"| {name} | {max(log.seconds[name]):.0f} | {most:.0f} | {resident:.0f} | {shared:.0f} |")
    lines += [
        "",
        "| | |",
        "|---|---:|",
        f"| hub and proxy together | {log.house.get('hub_mib', 0):.0f} MiB |",
        f"| a learner's server without kernels | {server:.0f} MiB |",
        f"| a learner whose three kernels stay open | {one:.0f} MiB |",
        f"| a learner who shuts each kernel before the next | {largest:.0f} MiB |",
        f"| all kernels of the three learners, none shut | {sum(kept):.0f} MiB |",
        f"| until the hub answered | {log.house.get('hub_s', 0):.1f} s |",
        f"| until three servers were ready | {log.house.get('servers_s', 0):.1f} s |",
        f"| three notebooks, three learners | {log.house.get('lesson_s', 0):.0f} s |",
        "",
        "An open kernel keeps what its notebook made. Shut it (*Kernel → Shut Down*, or the tab of running kernels)",
        "before you open the next notebook; the hub's `cull` does it after an hour for those who forget.",
        "",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the check; returns the exit code."""
    p = Parser(prog="python -m minglm.course.workshop.hub", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--hub", type=Path, required=True, help="environment that holds jupyterhub and, from npm, the proxy")
    p.add_argument("--accounts", action="store_true", help="an account of the system for each learner (root only)")
    p.add_argument("--write", type=Path, metavar="FILE", help="write what was seen as a page of Markdown")
    args = p.parse_args(argv)
    if args.accounts and (not hasattr(os, "geteuid") or os.geteuid() != 0):
        raise InputError("--accounts: makes accounts of the system, which needs root; leave it out")
    log = run(args.hub.resolve(), args.accounts)
    page = report(log, args.accounts)
    print(page)
    if args.write:
        atomic.write_text(args.write, page)
    return 0 if log.checks and all(holds for _, holds in log.checks) else 1


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
