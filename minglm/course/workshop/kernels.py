"""`minglm workshop kernels`: a class on one server. Starts real kernels, all at once, each training the model.

What is measured is what a server needs: the memory of each kernel when all of them have a trained model in hand,
counted twice: resident (shared pages counted in every kernel) and proportional (each shared page divided among its
users), and the memory that disappeared from the machine.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import cast

from minglm import datafiles
from minglm.errors import InputError
from minglm.runtime import machine

LESSON = """
import torch
torch.set_num_threads(1)
from minglm.config import ModelConfig
from minglm.model.model import Model
from minglm.training.optim import MuonAdamW
from minglm.plots import bars, figure
config = ModelConfig.named({model!r})
torch.manual_seed(0)
model = Model(config)
optimizer = MuonAdamW([(n, p) for n, p in model.named_parameters() if '.indexer.' not in n], config)
for _ in range({steps}):
    tokens = torch.randint(config.vocab_size, (4, 129))
    optimizer.zero_grad()
    model(tokens[:, :-1], tokens[:, 1:], mode='dense').lm_loss.backward()
    optimizer.step()
text = bars(figure('t', 'x', 'y'), ['a'], [1.0]).to_json()
print('ready')
"""


def measure(count: int = 30, model: str = "mini", steps: int = 2, timeout_s: float = 600.0) -> dict:
    """Start `count` kernels, run the lesson in all of them at once, weigh them, and end them.

    Raises:
        InputError: fewer than one kernel, or psutil is missing.
    """
    if count < 1:
        raise InputError(f"--count {count}: must be at least 1; 30 is a class")
    try:
        import psutil  # noqa: F401  (weigh needs it)
        from jupyter_client.manager import KernelManager
        from jupyter_client.provisioning.local_provisioner import LocalProvisioner
    except ImportError as err:
        raise InputError(f"{err.name} is not installed; {datafiles.install_hint('lab')}") from None
    free_before, begun, managers, failed = machine.available_memory_bytes(), time.monotonic(), [], 0
    try:
        for _ in range(count):
            manager = KernelManager()
            manager.start_kernel(stderr=subprocess.DEVNULL)
            managers.append(manager)
        clients = [m.blocking_client() for m in managers]
        for client in clients:
            client.start_channels()
            client.wait_for_ready(timeout=timeout_s)
        started = time.monotonic()
        requests = [c.execute(LESSON.format(model=model, steps=steps)) for c in clients]  # all at once
        for client, request in zip(clients, requests, strict=True):
            reply = client.get_shell_msg(timeout=timeout_s)
            while reply["parent_header"].get("msg_id") != request:
                reply = client.get_shell_msg(timeout=timeout_s)
            failed += reply["content"]["status"] != "ok"
        ready = time.monotonic()
        weights = [weigh(cast(int, cast(LocalProvisioner, m.provisioner).pid)) for m in managers]
        used = free_before - machine.available_memory_bytes()
        for client in clients:
            client.stop_channels()
    finally:
        for manager in managers:
            manager.shutdown_kernel(now=True)
    resident, proportional = ([w[i] for w in weights] for i in (0, 1))
    return {
        "kernels": count,
        "model": model,
        "failed": failed,
        "start_s": round(started - begun, 1),
        "lesson_s": round(ready - started, 1),
        "resident_mib": round(max(resident) / 2**20),
        "proportional_mib": round(sum(proportional) / count / 2**20),
        "sum_proportional_gib": round(sum(proportional) / 2**30, 2),
        "used_gib": round(used / 2**30, 2),
        "total_gib": round(machine.total_memory_bytes() / 2**30, 1),
        "cpu": machine.cpu_name(),
    }


def weigh(pid: int) -> tuple[int, int]:
    """(resident, proportional) bytes of a process; where the system does not tell the second, the first stands in."""
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    try:
        lines = {
            k: int(v.split()[0]) * 1024
            for k, v in (line.split(":", 1) for line in rollup.read_text(encoding="ascii").splitlines()[1:])
        }
        return lines["Rss"], lines["Pss"]
    except (OSError, KeyError, ValueError):
        import psutil

        resident = psutil.Process(pid).memory_info().rss
        return resident, resident


def report(result: dict) -> str:
    """What `measure` returned, in a few lines of text."""
    r = result
    return (
        f"{r['kernels']} kernels at once, each with a trained {r['model']}: {r['failed']} failed\n"
        f"each: {r['resident_mib']} MiB resident at most, {r['proportional_mib']} MiB when shared pages are divided\n"
        f"all: {r['sum_proportional_gib']} GiB (free memory fell by {r['used_gib']} GiB of {r['total_gib']})\n"
        f"time: {r['start_s']} s to start all, {r['lesson_s']} s until the last had computed ({r['cpu']})"
    )
