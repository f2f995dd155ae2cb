"""Kernels for notebooks that are forked where torch is imported already, in place of new ones that import it again.

Each is a process of its own, with its own folder, environment and modules: what is there before the first cell is what
any kernel that imports `PRELOADED` has. Nothing is computed in the process that they are forked from.
"""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import signal
import sys
import threading

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

# minglm first: it sets how torch's threads wait
PRELOADED = ("minglm", "torch", "ipykernel.kernelapp", "ipywidgets", "plotly.io")
NAME = "forked"


class Forked(LocalProvisioner):
    """Starts a kernel as a fork; stops it as any other."""

    async def launch_kernel(self, cmd, **kwargs):
        """`cmd` is python -m ipykernel_launcher -f FILE."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        self.process = _Process(context.Process(target=_run, args=(cmd[3:], kwargs["env"], kwargs["cwd"])))
        self.pid = self.pgid = self.process.pid
        self.cwd = kwargs["cwd"]
        return self.connection_info


class _Process:
    """A process of multiprocessing with the methods of subprocess.Popen that a provisioner calls."""

    stdin = stdout = stderr = None

    def __init__(self, process) -> None:
        process.start()
        self.process, self.pid = process, process.pid

    def poll(self):
        return self.process.exitcode

    def wait(self):
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _run(arguments, environment, folder) -> None:
    from ipykernel.kernelapp import IPKernelApp

    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:] = [place for place in sys.path if place]  # not the folder that the tests run in
    IPKernelApp.launch_instance(argv=arguments)


def _end_with(tests) -> None:
    """A kernel does not outlive the tests that started it, however they end."""
    tests.join()
    os._exit(1)


def use(monkeypatch) -> None:
    """Kernels of this test are forked."""
    factory = KernelProvisionerFactory.instance()
    entry = importlib.metadata.EntryPoint(NAME, f"{__name__}:Forked", factory.GROUP_NAME)
    monkeypatch.setitem(factory.provisioners, NAME, entry)
    monkeypatch.setattr(factory, "default_provisioner_name", NAME)
