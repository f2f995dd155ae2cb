"""Run a program nobody has read: call its function in a process of its own, with limits, and compare what comes back.

    >>> run("def f(x): return x + 1", "f", [((1,), 2), ((5,), 7)]).passed
    (True, False)

The right answers stay in this process. The child (`sandbox_child.py`) is told the arguments only and sends back each
value, which is compared here (`minglm.rl.sandbox_values`), so a program that forges its own verdict has to know the
answers, which is what was asked of it.

A program can say all that it has seen: its arguments, and those of the calls to come, which lie in its process. Who
shows its messages to a policy runs the tests that the policy must not know in another child.

What is held, and by what
    Linux (x86-64, arm64), as any user, root included:
        no file can be opened, read, listed, written or removed; no network; no new process or thread; no signal to any
        process; no change of limits: a seccomp list of allowed system calls, held by the kernel against native code
        too. Processor time, memory: resource limits of the kernel. Wall-clock time and output: this process, which
        kills the child. The child dies with its parent. Its folder is empty and it cannot open that either.
    macOS
        time, output, processor time, and mostly memory. Files, network and processes are refused by an audit hook,
        which stops mistakes and clumsy programs, not a determined one. Use a container or a virtual machine for those.
    Windows
        time and output; the audit hook as above. No limit on memory or processor time.
    Nowhere
        side channels, bugs of the kernel, heat. A program can use its processor seconds in full.
`fences()` says what this machine holds, from a child that tried; `strict=True` refuses to run without the kernel's
fence.

Every wait has a bound: at most `time_s` for the program, then its whole process group is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from minglm.errors import InputError, one_line
from minglm.rl.sandbox_values import decode, encode, same

_CHILD = Path(__file__).with_name("sandbox_child.py")
_AFTER_KILL_S = 5.0
_MESSAGE_CHARS = 300


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    cpu_s: int = 2  # processor time, the interpreter's start included
    time_s: float = 10.0  # wall clock: on a busy machine a program waits without fault of its own
    memory_bytes: int = 256 * 2**20  # address space, the interpreter's own 30 MiB or so included
    output_bytes: int = 64 * 2**10  # of prints, and of results
    program_chars: int = 20_000
    value_chars: int = 2_000  # a longer repr does not pass

    def __post_init__(self) -> None:
        for name, least in (
            ("cpu_s", 1),
            ("time_s", 0.1),
            ("memory_bytes", 64 * 2**20),
            ("output_bytes", 1024),
            ("program_chars", 1),
            ("value_chars", 1),
        ):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not value >= least
                or value == float("inf")
            ):
                raise InputError(
                    f"sandbox limit {name}={value!r}: must be a number of at least {least}; the default is "
                    f"{getattr(type(self), name)}"
                )


@dataclass(frozen=True)
class Result:
    """What became of a program.

    outcome: "ran" (every call ended), "error" (it does not compile, or lacks the function), "timeout" (of either kind),
    "output" (too much printed), "crashed" (the process died), "refused" (strict, and no fence). `message` is one
    printable line of at most 300 characters, whatever the program wrote.
    """

    outcome: str
    passed: tuple[bool, ...]
    message: str  # the first thing that went wrong; "" when all passed
    output: str = ""  # what it printed, cut
    seconds: float = 0.0
    held: dict[str, str] = field(default_factory=dict)  # fence → "" held, else why not

    @property
    def ok(self) -> bool:
        """Whether there were tests and all passed."""
        return bool(self.passed) and all(self.passed)

    @property
    def share(self) -> float:
        """Share of the tests that passed."""
        return sum(self.passed) / len(self.passed) if self.passed else 0.0


def run(
    program: str,
    function: str,
    tests: Sequence[tuple[tuple, object]],
    limits: Limits = Limits(),
    strict: bool = False,
    audit_hook: bool = True,
) -> Result:
    """Run `program`, call `function` on each test's arguments, and compare value and expectation by value: 2 is 2.0, a
    Counter is a dict, a namedtuple a tuple, nan is nan; a list is no tuple and True is not 1.

    Never raises for what the program does.

    Args:
        tests: (arguments, expected) pairs of plain Python values: None, bools, numbers, str, bytes, and lists, tuples,
            sets and dicts of them. What else is expected is compared by its `repr`.
        strict: do not run at all where the kernel does not fence the program in.
        audit_hook: False leaves the second fence out, to see what the kernel holds alone.

    Raises:
        InputError: no tests, an argument that is no plain value, or a function name that is none.
    """
    if not function.isidentifier():
        raise InputError(f"function {function!r}: must be a Python name; give the one that the program defines")
    if not tests:
        raise InputError(
            f"no tests for {function}: a program without a test cannot pass; give at least one (arguments, expected)"
        )
    calls = [encode(tuple(arguments)) for arguments, _ in tests]
    if (odd := next((a for call in calls for a in call["tuple"] if '{"other": ' in json.dumps(a)), None)) is not None:
        raise InputError(
            f"argument {one_line(repr(decode(odd)), 80)}: no plain value; give numbers, texts, and lists, tuples, sets "
            "and dicts of them"
        )
    started, failed = time.monotonic(), (False,) * len(tests)
    if len(program) > limits.program_chars or "\0" in program:
        return Result(
            "error", failed, f"program of {len(program)} characters: at most {limits.program_chars}, none of them NUL"
        )
    request = json.dumps(
        {
            "program": program,
            "function": function,
            "calls": calls,
            "strict": strict,
            "audit_hook": audit_hook,
            "cpu_s": int(limits.cpu_s),
            "memory_bytes": limits.memory_bytes,
            "value_chars": limits.value_chars,
        }
    )
    results, output, stopped, code = _child(request.encode(), limits, started)
    rows, held = _rows(results)
    outcome = _outcome(rows, stopped, code, limits, function, tests)
    if strict and (not held or held.get("seccomp")):
        why = held.get("seccomp") or "no answer"
        outcome = _Outcome(
            "refused",
            f"strict: this machine does not fence a program in ({why}); leave strict out or use Linux",
            failed,
        )
    message = one_line(outcome.message, _MESSAGE_CHARS)
    return Result(outcome.kind, outcome.passed, message, output, time.monotonic() - started, held)


class _Outcome(NamedTuple):
    kind: str
    message: str
    passed: tuple[bool, ...]


def _rows(results: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(objects that the child wrote, fence → "" or why it does not hold, from the first that says so)."""
    rows: list[dict[str, Any]] = []
    held: dict[str, str] = {}
    for line in results.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a program that found the pipe wrote this; it proves nothing
        if isinstance(row, dict):
            if isinstance(row.get("held"), dict) and not held:
                held = {one_line(k, 40): one_line(str(v), 200) for k, v in row["held"].items()}
            rows.append(row)
    return rows, held


def _outcome(
    rows: Sequence[dict[str, Any]],
    stopped: str,
    code: int | None,
    limits: Limits,
    function: str,
    tests: Sequence[tuple[tuple, object]],
) -> _Outcome:
    """What the child's results, the reason why it was stopped and its exit code say."""
    broken = next((str(r["program"]) for r in rows if "program" in r), None)
    if broken is not None:
        return _Outcome("error", broken, (False,) * len(tests))
    calls = {r["call"]: r for r in reversed(rows) if isinstance(r.get("call"), int)}
    passed = tuple(i in calls and _right(calls[i], expected) for i, (_, expected) in enumerate(tests))
    if stopped == "timeout":
        return _Outcome("timeout", f"stopped after {limits.time_s:g} s of waiting", passed)
    if stopped == "output":
        return _Outcome("output", f"more than {limits.output_bytes} bytes written", passed)
    if len(calls) < len(tests):
        died = _died(code)
        if died in ("SIGXCPU", "SIGKILL"):
            message = f"stopped by the system ({died}): more than {limits.cpu_s} s of processor time"
            return _Outcome("timeout", message, passed)
        message = f"the process ended ({died}) before call {len(calls) + 1} of {len(tests)} came back"
        return _Outcome("crashed", message, passed)
    for i, (arguments, expected) in enumerate(tests):
        if not passed[i]:
            value = calls[i].get("error") or calls[i].get("shown")
            return _Outcome("ran", f"{function}{_call(arguments)} gave {value}, not {expected!r}", passed)
    return _Outcome("ran", "", passed)


def _right(row: dict[str, Any], expected: object) -> bool:
    """Whether a call's row holds the expected value; a row that the program wrote may hold anything."""
    if "error" in row or "value" not in row:
        return False
    try:
        return same(decode(row["value"]), expected)
    except (TypeError, ValueError, RecursionError, AttributeError):
        return False


def _call(arguments: Sequence) -> str:
    return f"({', '.join(map(repr, arguments))})"


def _died(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            pass
    return f"code {code}"


def _child(request: bytes, limits: Limits, started: float) -> tuple[str, str, str, int | None]:
    """Start the child, feed it, read what it says within the limits, kill it. → results, prints, "" or why it was
    stopped, exit code."""
    too_much = threading.Event()

    def read(pipe, into: bytearray) -> None:
        while chunk := pipe.read1(8192):
            into += chunk[: max(0, limits.output_bytes + 1 - len(into))]
            if len(into) > limits.output_bytes:
                too_much.set()
                return

    with tempfile.TemporaryDirectory(prefix="minglm-sandbox-", ignore_cleanup_errors=True) as folder:
        environment = {
            k: os.environ[k] for k in ("SYSTEMROOT", "SystemRoot") if k in os.environ
        }  # Windows cannot start without
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=environment,
            close_fds=True,
            start_new_session=True,
        )
        pipe_in, results, prints = process.stdin, bytearray(), bytearray()
        assert pipe_in is not None, "stdin is a pipe"
        readers = [
            threading.Thread(target=read, args=pair, daemon=True)
            for pair in ((process.stdout, results), (process.stderr, prints))
        ]
        why = ""
        try:
            for reader in readers:
                reader.start()
            try:
                pipe_in.write(request)
                pipe_in.close()
            except OSError:
                pass  # it died before it read; its exit code says how
            deadline = started + limits.time_s
            while any(r.is_alive() for r in readers) and not too_much.is_set():
                if time.monotonic() >= deadline:
                    why = "timeout"
                    break
                readers[0].join(0.005)
                if not readers[0].is_alive():
                    readers[1].join(0.005)
            why = "output" if too_much.is_set() else why
        finally:
            code = _kill(process)
        for reader in readers:
            reader.join(_AFTER_KILL_S)
        if not why and any(r.is_alive() for r in readers):
            why = "timeout"  # something outside our group holds the pipe: where the kernel does not fence
    return (
        bytes(results).decode("utf-8", "replace"),
        bytes(prints[: limits.output_bytes]).decode("utf-8", "replace"),
        why,
        code,
    )


def _kill(process: subprocess.Popen) -> int | None:
    """End the child and everything in its process group, and wait for it, within a bound. Before it is reaped its
    number is its own, so the group that is killed is its own."""
    try:
        process.wait(0.02)  # both pipes closed: usually it is ending by itself
    except subprocess.TimeoutExpired:
        if hasattr(os, "killpg"):
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        process.kill()
    try:
        return process.wait(_AFTER_KILL_S)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()


@lru_cache(maxsize=1)
def fences() -> dict[str, str]:
    """What this machine holds, tried out: fence → "" where it holds, else why not."""
    return dict(run("def f(): return 1", "f", [((), 1)], Limits(time_s=10)).held)
