"""What a disk and a clock do: no room, a file cut short, a network disk without locks, a map of a file that changes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from minglm import atomic
from minglm.tools.drills.processes import (
    LIMIT_S,
    Failed,
    Shared,
    environment,
    kill_all,
    one_line,
    patched,
    resumes,
    run,
    start,
    steps,
    train,
    until,
)

LONG = 120  # steps that are not over before others have had a look
# A disk that knows no locks, no hard links and no flushing of one file; and a machine of another name on it.
NETWORK_DISK = """
import os, platform
def refuse(*_, **__): raise OSError(95, "Operation not supported")
os.link = os.fsync = refuse
try:
    import fcntl
    fcntl.flock = fcntl.lockf = refuse
except ImportError: pass
platform.node = lambda: {name!r}
"""
CLOCK = (
    "import time, itertools; real, turn = time.time, itertools.count()\n"
    "time.time = lambda: real() + (3.2e7 if next(turn) % 3 else -3.2e7)"
)
READER = """
import hashlib, select, sys
from pathlib import Path
from minglm.data import shards
shard = shards.open_shard(Path(sys.argv[1]))
seen = {hashlib.sha256(shard.tokens.tobytes()).hexdigest()}
print("reading", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    seen.add(hashlib.sha256(shard.tokens.tobytes()).hexdigest())
print(len(seen))
"""
WRITER = """
import sys
from pathlib import Path
from minglm.data import shards
for n in range(40):
    shards.write(Path(sys.argv[1]), [[1] * (n % 7 + 1)], 100)
"""


def disk_full(shared: Shared, folder: Path) -> str:
    """No room for a checkpoint: the run ends with a line, the last good checkpoint stays, and with room it goes on."""
    straight = shared.straight()
    size = sum(f.stat().st_size for f in sorted((straight / "checkpoints").iterdir())[-1].iterdir())
    # a limit on the size of one file stands for a full disk: write() fails in the middle of a file
    limit = shared.rng.randint(size // 50, size // 4)
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    )
    shutil.copytree(straight.parent / "data", folder.parent / "data")  # so that it is the checkpoint that finds no room
    one_line(run(patched(code, train(folder))), "a full disk", 1, 2)
    resumes(shared, folder)
    return f"a file of at most {limit:,} bytes: said so in one line; with room, trained to the end"


def truncated_shard(shared: Shared, folder: Path) -> str:
    """A token shard cut short is named, not trained on."""
    resumes(shared, folder)
    shards = sorted((folder.parent / "data").rglob("*.bin"))
    if not shards:
        raise Failed("no token shard was found")
    victim = shared.rng.choice(shards)
    content = victim.read_bytes()
    os.truncate(victim, shared.rng.randint(0, len(content) - 1))
    done = run(train(folder.with_name("again")))
    atomic.write_bytes(victim, content)
    if done.returncode == 0:
        return f"{victim.name} cut short: noticed and made again"
    if victim.name not in one_line(done, f"a truncated {victim.name}"):
        raise Failed(f"a truncated {victim.name} was not named: {done.stderr.strip()[-300:]!r}")
    return f"{victim.name} cut short: named in one line, nothing trained on it"


def clock_jump(shared: Shared, folder: Path) -> str:
    """The wall clock jumps by a year, forwards and back, while training runs: nothing depends on it."""
    done = run(patched(CLOCK, train(folder)))
    if done.returncode:
        raise Failed(f"a jumping clock ended the run with {done.returncode}: {done.stderr.strip()[-300:]}")
    if steps(folder) != steps(shared.straight()):
        raise Failed("a jumping clock changed the losses")
    return "the clock jumped by a year at every look: same losses"


def network_disk(shared: Shared, folder: Path) -> str:
    """A disk without locks that two machines share: one writer, also when it dies and the other cannot look it up."""
    command = train(folder, steps=LONG)
    here, there = (patched(NETWORK_DISK.format(name=name), command) for name in ("machine-a", "machine-b"))
    process = start(here)
    try:
        if not until(process, lambda: len(steps(folder)) >= 5):
            raise Failed(f"a run on a disk without locks ended with {process.returncode}")
        os.kill(process.pid, signal.SIGSTOP)  # so that it has not ended when the others come
        said = one_line(run(there), "a writer on another machine"), one_line(run(here), "a second writer")
        if "delete " not in said[0] or "delete " in said[1] or not all("machine-a" in line for line in said):
            raise Failed(f"the owner was not told: {said}")
    finally:
        kill_all(process)
    remedy = one_line(run(there), "a writer on another machine, after a kill").rpartition("delete ")[2]
    Path(remedy).unlink()
    resumes(shared, folder, there, LONG)
    return "no flock, no links, no fsync: second writers refused in one line, from here and there; the remedy works"


def mapped_reader(shared: Shared, folder: Path) -> str:
    """A run that reads its shards from a memory map beside others that write them: it reads on, unharmed."""
    straight, others = shared.straight(), [folder.with_name(name) for name in ("a", "b", "c")]
    processes = [start(train(other)) for other in others]  # all make the same shards, which are not there yet
    try:
        for process, other in zip(processes, others, strict=True):
            if process.wait(LIMIT_S) or steps(other) != steps(straight):
                raise Failed(f"one of three that made the same shards ended with {process.returncode}")
    except subprocess.TimeoutExpired:
        raise Failed("three runs that made the same shards hung") from None
    finally:
        for process in processes:
            kill_all(process)
    shard = next((folder.parent / "data").rglob("train.bin")).with_suffix("")
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(shard)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    reader.stdout.readline()
    began = time.monotonic()
    written = run([sys.executable, "-c", WRITER, str(shard)])
    out, _ = reader.communicate("end\n", LIMIT_S)
    if written.returncode or reader.returncode or out.strip() != "1":
        raise Failed(f"the reader ended with {reader.returncode} and saw {out.strip() or 'nothing'}")
    return f"three made the same shards, same losses; written 40 times in {time.monotonic() - began:.0f} s under a map"
