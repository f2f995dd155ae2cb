"""The inside of the sandbox: started as a script in a process of its own, never imported by the project.

Reads one JSON request from stdin, locks itself in, runs the program, calls its function on each argument list and
writes one JSON line per call, with the value (`sandbox_values.encode`). It is never told what the right answers are.

The order matters: everything this file needs is imported and read first, then the doors close, one after the other, and
only then does foreign code run. Doors, from the strongest:

    seccomp      Linux on x86-64 and arm64: a list of system calls that are allowed; any other fails: "not permitted".
                 Not on it: opening a path, any socket, any new process or thread, any signal to a process, changing
                 limits.
    rlimits      Linux, macOS: processor seconds, address space, size of written files, open files, processes.
    audit hook   everywhere: Python's own calls for the same things are refused. A hook inside the interpreter that runs
                 the foreign code can be got round; it gives a clear error, it is not a wall.
"""

import builtins
import collections
import functools
import heapq
import io
import itertools
import json
import math
import operator
import os
import platform
import re
import string
import sys
import traceback

PRELOADED = (
    bisect := __import__("bisect"),
    collections,
    functools,
    heapq,
    io,
    itertools,
    math,
    operator,
    re,
    string,
    __import__("random"),
    __import__("copy"),
    __import__("typing"),
    __import__("collections.abc"),
    traceback,
)

# System calls by name. Reading and writing need a descriptor that is already open; nothing here makes a new one.
_X86_64 = dict(
    read=0,
    write=1,
    close=3,
    fstat=5,
    lseek=8,
    mmap=9,
    mprotect=10,
    munmap=11,
    brk=12,
    rt_sigaction=13,
    rt_sigprocmask=14,
    rt_sigreturn=15,
    readv=19,
    writev=20,
    sched_yield=24,
    mremap=25,
    madvise=28,
    nanosleep=35,
    getpid=39,
    exit=60,
    gettimeofday=96,
    getrusage=98,
    times=100,
    sigaltstack=131,
    gettid=186,
    time=201,
    futex=202,
    restart_syscall=219,
    clock_gettime=228,
    clock_getres=229,
    clock_nanosleep=230,
    exit_group=231,
    getrandom=318,
    rseq=334,
)
_ARM64 = dict(
    close=57,
    lseek=62,
    read=63,
    write=64,
    readv=65,
    writev=66,
    fstat=80,
    exit=93,
    exit_group=94,
    futex=98,
    nanosleep=101,
    clock_gettime=113,
    clock_getres=114,
    clock_nanosleep=115,
    sched_yield=124,
    restart_syscall=128,
    sigaltstack=132,
    rt_sigaction=134,
    rt_sigprocmask=135,
    rt_sigreturn=139,
    times=153,
    getrusage=165,
    gettimeofday=169,
    getpid=172,
    gettid=178,
    brk=214,
    munmap=215,
    mremap=216,
    mmap=222,
    mprotect=226,
    madvise=233,
    getrandom=278,
    rseq=293,
)
_MACHINES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _ARM64)}


def seccomp() -> str:
    """Allow the calls above, answer EPERM to all others. Returns "" on success, else why it is not held."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return f"no seccomp on {sys.platform} {platform.machine()}"
    import ctypes

    architecture, calls = _MACHINES[platform.machine()]
    load, equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    allow, refuse, kill = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # refuse: ERRNO with EPERM

    class Instruction(ctypes.Structure):
        _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)]

    class Program(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction))]

    code = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, 0)]
    numbers = sorted(calls.values())
    code += [(equal, len(numbers) - i, 0, n) for i, n in enumerate(numbers)]
    code += [(give, 0, 0, refuse), (give, 0, 0, allow)]
    array = (Instruction * len(code))(*(Instruction(*line) for line in code))
    libc = ctypes.CDLL(None, use_errno=True)
    none = ctypes.c_ulong(0)
    if libc.prctl(38, ctypes.c_ulong(1), none, none, none):  # PR_SET_NO_NEW_PRIVS
        return f"no_new_privs refused: {os.strerror(ctypes.get_errno())}"
    if libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(Program(len(code), array)), none, none):  # PR_SET_SECCOMP, filter
        return f"seccomp refused: {os.strerror(ctypes.get_errno())}"
    return ""


def die_with_parent() -> None:
    """Linux: end when the process that started us ends, so that a killed trainer leaves nothing running."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(
            1, ctypes.c_ulong(9), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)
        )  # PR_SET_PDEATHSIG


def rlimits(cpu_s: int, memory_bytes: int) -> str:
    """Returns "" when all are set, else which are not held."""
    try:
        import resource
    except ImportError:
        return f"no resource limits on {sys.platform}"
    missing = []
    for name, soft, hard in (
        ("RLIMIT_CPU", cpu_s, cpu_s + 1),
        ("RLIMIT_AS", memory_bytes, memory_bytes),
        ("RLIMIT_FSIZE", 0, 0),
        ("RLIMIT_NOFILE", 16, 16),
        ("RLIMIT_CORE", 0, 0),
        ("RLIMIT_NPROC", 0, 0),
    ):
        try:
            resource.setrlimit(getattr(resource, name), (soft, hard))
        except (AttributeError, OSError, ValueError):
            missing.append(name)
    return f"not held: {', '.join(missing)}" if missing else ""


_REFUSED = (
    "open",
    "socket.",
    "subprocess.",
    "os.",
    "shutil.",
    "ctypes.",
    "pty.",
    "mmap.",
    "tempfile.",
    "glob.",
    "sqlite3.",
    "signal.",
    "webbrowser.",
    "urllib.",
    "http.",
    "ftplib.",
    "smtplib.",
    "_winapi.",
    "winreg.",
    "syslog.",
    "fcntl.",
    "resource.",
    "pathlib.",
    "sys.addaudithook",
    "cpython.run_",
)


def audit_hook() -> None:
    """Refuse Python's own calls for files, sockets and processes."""
    refused = _REFUSED

    def hook(event, args, refused=refused, error=PermissionError):
        if event.startswith(refused) and event != "os.exit":
            raise error(f"not allowed here: {event}")

    sys.addaudithook(hook)


def value_functions():
    """`encode` and `decode` of sandbox_values.py, which lies beside this file: nothing here can import the project."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sandbox_values.py")
    space: dict = {"__name__": "sandbox_values"}
    with open(path, encoding="utf-8") as file:
        exec(compile(file.read(), path, "exec"), space)
    return space["encode"], space["decode"]


def main() -> None:
    """Read the request, lock the doors, run the program, write what came out."""
    request = json.loads(sys.stdin.buffer.read())
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")  # results; the program's own prints go where errors go
    os.dup2(2, 1)
    sys.stdin = io.StringIO("")
    os.close(0)
    encode, decode = value_functions()
    calls = [decode(call) for call in request["calls"]]
    die_with_parent()
    held = {
        "rlimits": rlimits(request["cpu_s"], request["memory_bytes"]),
        "seccomp": seccomp(),
        "audit hook": "" if request["audit_hook"] else "left out",
    }
    if request["audit_hook"]:
        audit_hook()
    write, flush, dumps, show, cut = out.write, out.flush, json.dumps, repr, request["value_chars"]

    def tell(**row):
        write(dumps(row) + "\n")
        flush()

    tell(held=held)
    if request["strict"] and held["seccomp"]:
        return

    def failure(error):
        try:
            return f"{type(error).__name__}: {error}".splitlines()[0][:cut]
        except BaseException:
            return type(error).__name__[:cut]

    space: dict[str, object] = {"__name__": "program", "__builtins__": builtins}
    try:
        exec(compile(request["program"], "program", "exec"), space)
        function = space[request["function"]]
    except BaseException as error:
        tell(program=f"no function {request['function']}" if type(error) is KeyError else failure(error))
        return
    for i, arguments in enumerate(calls):
        try:
            value = function(*arguments)  # type: ignore[operator] # whatever the program calls by that name
            text = show(value)
            if type(text) is str and len(text) <= cut:
                tell(call=i, value=encode(value), shown=text)
            else:
                tell(call=i, error="a value too long to compare")
        except BaseException as error:
            tell(call=i, error=failure(error))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # no exit handlers of the program
