"""Ctrl-C at the worst moments of both commands: one word, exit code 130, no traceback."""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

# What a library does to an interrupt in its import: lets it through, takes it for a missing module (numpy), ignores it.
IMPORTS = {
    "lets it through": "os.kill(os.getpid(), signal.SIGINT)\nfor _ in range(10**7): pass",
    "takes it for a missing module": (
        "try:\n os.kill(os.getpid(), signal.SIGINT)\n for _ in range(10**7): pass\n"
        "except BaseException: raise ImportError('cannot load module more than once per process')"
    ),
    "ignores it": (
        "try:\n os.kill(os.getpid(), signal.SIGINT)\n for _ in range(10**7): pass\nexcept BaseException: pass\n"
        "raise SystemExit('went on without it')"
    ),
}
COMMANDS = {
    "minglm": ("torch", "generate", "--checkpoint", ".", "--prompt", "a"),
    "sim": ("simpy", "run", "glm5_mini_smoke"),
}


def run(package, arguments, path):
    return subprocess.run(
        [sys.executable, "-m", package, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        # a shell that starts tests in the background has them ignore the interrupt, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(path), os.getcwd()])},
    )


@pytest.mark.parametrize("package", COMMANDS)
@pytest.mark.parametrize("manner", IMPORTS)
def test_in_the_middle_of_an_import(package, manner, tmp_path):
    library, *arguments = COMMANDS[package]
    (tmp_path / f"{library}.py").write_text(f"import os, signal\n{IMPORTS[manner]}\n", encoding="utf-8")
    done = run(package, arguments, tmp_path)
    assert (done.returncode, done.stderr) == (130, "stopped\n"), done.stderr


@pytest.mark.parametrize("package", COMMANDS)
def test_between_imports_it_is_an_interrupt_as_ever(package):
    """A command may catch it, save and say so; one that does not ends in the same way."""
    main = "minglm.cli.doctor" if package == "minglm" else "sim.cli.claims"
    code = (
        f"import runpy, sys, os, signal, {main} as command\n"
        "def interrupted(args):\n os.kill(os.getpid(), signal.SIGINT)\n for _ in range(10**7): pass\n"
        f"command.main = interrupted\nsys.argv = ['x', {main.rpartition('.')[2]!r}]\n"
        f"runpy.run_module({package!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (130, "stopped\n"), done.stderr


def test_where_it_is_ignored_it_stays_so():
    code = (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from minglm.runtime.interrupt import end_at_once_while_importing\nend_at_once_while_importing()\n"
        "print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stdout == "True\n", done.stderr
