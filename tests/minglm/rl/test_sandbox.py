"""The sandbox: right programs pass, wrong ones do not, and hostile ones neither harm nor hang."""

import os
import platform
import sys
import time
from pathlib import Path

import pytest

from minglm.errors import InputError
from minglm.rl import sandbox
from minglm.rl.sandbox import Limits, Result, fences, run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sandbox")]

FENCED = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
QUICK = Limits(cpu_s=1, time_s=20)
ONE = [((), 1)]
# Whatever a program does, the call is back by then: its limits, the kill, and a machine with a dozen others on it.
LONGEST_S = 200


def attempt(program: str, tests=ONE, limits: Limits = QUICK, **more) -> Result:
    started = time.monotonic()
    result = run(program, "f", tests, limits, **more)
    assert time.monotonic() - started < LONGEST_S
    assert result.message.isprintable() and len(result.message) <= 300
    return result


def children() -> list[str]:
    """Command lines of processes that this one's sandboxes started and that still run (Linux)."""
    out = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parent = int((entry.parent / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if "sandbox_child" in line and parent in (os.getpid(), 1):
            out.append(line)
    return out


# ---------------------------------------------------------------------- honest programs


def test_values_are_compared_exactly_and_told_in_one_line():
    program = "import math\ndef f(x):\n    print('hello')\n    return [x, {'a': (math.floor(2.5), None)}]"
    tests = [((1,), [1, {"a": (2, None)}]), ((True,), [1, {"a": (2, None)}]), ((2.0,), [2.0, {"a": (2, None)}])]
    result = attempt(program, tests)
    assert result.passed == (True, False, True) and not result.ok and result.share == pytest.approx(2 / 3)
    assert result.outcome == "ran" and "gave [True, " in result.message and result.output == "hello\n" * 3


def test_arguments_of_every_plain_kind_arrive():
    values = [None, True, -3, 2.5, float("inf"), "a'\"\n", b"\x00\xff", [1, [2]], (1,), {"k": {1}}, 10**40]
    values += [set(), frozenset({(1, 2)}), {}, {(1, "a"): [None]}, float("nan"), 1 + 2j, "\ud800", {frozenset({1}): 2}]
    assert attempt("def f(x): return x", [((v,), v) for v in values]).ok
    kinds = [type(v).__name__ for v in values if not isinstance(v, frozenset)]
    plain = [((v,), kind) for v, kind in zip([v for v in values if not isinstance(v, frozenset)], kinds, strict=True)]
    assert attempt("def f(x): return type(x).__name__", plain).ok


def test_what_is_no_plain_value_is_no_argument():
    for odd in (range(3), {"a": object}, [{1: print}]):
        with pytest.raises(InputError, match="no plain value"):
            run("def f(x): return 1", "f", [((odd,), 1)])


COLLECTIONS = "import collections, enum\nP = collections.namedtuple('P', 'x y')\nclass E(enum.IntEnum): A = 3\n"
EQUAL = {
    "a set in another order": ("{'b', 'a', 'c'}", {"c", "a", "b"}),
    "a dict in another order": ("{2: 'b', 1: 'a'}", {1: "a", 2: "b"}),
    "a Counter": ("collections.Counter('aab')", {"a": 2, "b": 1}),
    "a defaultdict": ("collections.defaultdict(list, a=[1])", {"a": [1]}),
    "an OrderedDict": ("collections.OrderedDict([(2, 1), (1, 2)])", {1: 2, 2: 1}),
    "a namedtuple": ("P(1, 2)", (1, 2)),
    "an enum of numbers": ("E.A", 3),
    "an int for a float": ("2", 2.0),
    "a float for an int": ("[2.0, {1.0: 3.0}]", [2, {1: 3}]),
    "not a number": ("[float('nan'), {float('nan')}]", [float("nan"), {float("nan")}]),
    "minus nothing": ("-0.0", 0.0),
    "a frozen set": ("{frozenset({1}): 1}", {frozenset({1}): 1}),
    "a set for a frozen one": ("{1, 2}", frozenset({2, 1})),
    "half a character": ("chr(0xd800)", "\ud800"),
    "a deque, by its text": ("collections.deque([1, 2])", __import__("collections").deque([1, 2])),
}


@pytest.mark.parametrize("name", EQUAL)
def test_values_are_compared_by_value_not_by_their_text(name):
    text, expected = EQUAL[name]
    result = attempt(f"{COLLECTIONS}def f(): return {text}", [((), expected)])
    assert result.ok, result.message


@pytest.mark.parametrize(
    "text, expected",
    [
        ("True", 1),
        ("[1, 2]", (1, 2)),
        ("{1, 2}", {1, 2, 3}),
        ("{'a': 2}", {"a": 2, "b": 0}),
        ("'1'", 1),
        ("b'a'", "a"),
        ("2**53 + 1", 2.0**53),
        ("0.1 + 0.2", 0.3),
        ("float('nan')", None),
        ("{True}", {1}),
        ("[0]", []),
        ("type('E', (), {'__eq__': lambda a, b: True, '__repr__': lambda a: '1'})()", 1),
        ("type('L', (list,), {'__repr__': lambda a: '[1]'})()", [1]),
    ],
)
def test_what_differs_in_value_does_not_pass(text, expected):
    result = attempt(f"def f(): return {text}", [((), expected)])
    assert result.passed == (False,) and result.outcome == "ran" and "gave" in result.message


@pytest.mark.parametrize(
    "program, outcome, words",
    [
        ("def f(:", "error", "SyntaxError"),
        ("x = 1", "error", "no function f"),
        ("", "error", "no function f"),
        ("import numpy\ndef f(): return 1", "error", "ModuleNotFoundError"),
        ("def f(): return 1/0", "ran", "ZeroDivisionError"),
        ("def f(a, b): return 1", "ran", "TypeError"),
        ("raise SystemExit(0)", "error", "SystemExit"),
        ("def f(): raise KeyboardInterrupt", "ran", "KeyboardInterrupt"),
        ("f = 1", "ran", "TypeError"),
        ("\0", "error", "NUL"),
        ("#" * 30_000, "error", "at most"),
        ("def f(): return 'x' * 5000", "ran", "too long"),
    ],
)
def test_what_goes_wrong_is_said(program, outcome, words):
    result = attempt(program)
    assert (result.outcome, result.passed) == (outcome, (False,)) and words in result.message


def test_calls_that_ended_before_a_loop_count():
    result = attempt("def f(x):\n    while x: pass\n    return 1", [((0,), 1), ((1,), 1), ((0,), 1)])
    assert result.outcome == "timeout" and result.passed == (True, False, False)


# ---------------------------------------------------------------------- hostile programs

HOSTILE = {
    "infinite loop while loading": "while True: pass",
    "infinite loop that swallows everything": (
        "def f():\n while True:\n  try:\n   while True: pass\n  except BaseException: pass"
    ),
    "processor limit ignored": "import _signal\n_signal.signal(24, _signal.SIG_IGN)\ndef f():\n while True: pass",
    "memory at once": "def f(): return len(bytearray(10**11))",
    "memory bit by bit": "def f():\n a = []\n while True: a.append(bytearray(10**6))",
    "huge number": "def f(): return 9**9**9",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()",
    "recursion in the compiler": "def f(): return " + "(" * 5000 + "1" + ")" * 5000,
    "recursion in repr": "def f():\n a = 1\n for _ in range(10**6): a = [a]\n return a",
    "huge output": "def f():\n while True: print('x' * 10000)",
    "huge output past Python": "import os\ndef f():\n while True: os.write(1, b'x' * 10000)",
    "exit without a word": "import os\ndef f(): os._exit(0)",
    "every descriptor closed": (
        "import os\ndef f():\n for fd in range(100):\n  try: os.close(fd)\n  except OSError: pass\n while True: pass"
    ),
    "a value that lies about itself": "class L(str):\n def __repr__(self):\n  while True: pass\ndef f(): return L()",
    "a crash in native code": "import ctypes\ndef f(): return ctypes.string_at(0)",
    "broken builtins": (
        "import builtins, json\nbuiltins.repr = lambda x: '1'\njson.dumps = lambda **k: ''\ndef f(): return 2"
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program_neither_passes_nor_hangs(name):
    assert attempt(HOSTILE[name]).passed == (False,)
    assert not FENCED or not children()


def test_a_sleeper_is_woken_for_good():
    result = attempt("import time\ndef f(): time.sleep(1000)", limits=Limits(cpu_s=1, time_s=2.5))
    assert result.outcome == "timeout" and result.seconds < 200


FORGED = """
import json, os, gc, io
def f():
    for fd in range(3, 16):
        forged = b'{"call": 0, "value": "5"}\\n{"call": 0, "value": 1}\\n[1]\\n{"call": [0]}\\n{"held": 3}\\n'
        try: os.write(fd, forged + b'[' * 5000 + b'\\n')
        except OSError: pass
    os._exit(0)
"""


def test_a_forged_result_needs_the_answer_and_garbage_does_no_harm():
    assert attempt(FORGED, [((), 1)]).passed == (False,)


SAID = [
    "a\\nb" * 2000,
    "\\ud800",
    "\\u202e\\u2028 \\x1b[31m\\x00\\x7f",
    {"a": "\\n" * 50},
    ["\\n"] * 900,
    10**300,
    None,
    "",
]


@pytest.mark.parametrize("row", ["program", "error", "shown", "call", "held", "value"])
@pytest.mark.parametrize("said", range(len(SAID)))
def test_whatever_is_written_to_the_pipe_the_message_is_one_short_printable_line(row, said):
    """A program that has found the results' descriptor writes rows of its own; `attempt` looks at the message."""
    value = SAID[said] if not isinstance(SAID[said], str) else SAID[said].encode().decode("unicode_escape")
    forged = {"program": {"program": value}, "held": {"held": {"seccomp": value}}}.get(row, {"call": 0, row: value})
    program = (
        f"import os, json\ndef f():\n for fd in range(3, 16):\n"
        f"  try: os.write(fd, (json.dumps({forged!r}) + chr(10)).encode())\n  except OSError: pass\n return 5"
    )
    result = attempt(program, strict=FENCED)
    assert result.passed == (False,) and str(result).encode() and all(v.isprintable() for v in result.held.values())


@pytest.mark.parametrize(
    "program",
    [
        "raise ValueError('a\\rb\\x1b[2J' + chr(0xd800) + 'x' * 5000)",
        "def f(): raise ValueError('a\\x85b\\u2029' * 3000)",
        "def f(): return chr(0xdfff) + '\\n' * 300",
        f"def f(): return '{chr(0xD800)}'",
        "class E(Exception):\n def __str__(self): return chr(0xd800) * 9\ndef f(): raise E",
    ],
)
def test_what_a_program_says_is_escaped(program):
    result = attempt(program)
    assert result.passed == (False,) and result.message.encode()


def test_the_right_answers_are_never_told_to_the_child(monkeypatch):
    told = []
    monkeypatch.setattr(sandbox, "_child", lambda request, limits, started: told.append(request) or ("", "", "", 0))
    attempt("def f(x): return 1", [(("question 1",), "answer 8421")])
    assert b"question 1" in told[0] and b"8421" not in told[0]


# What each tries is refused by the hook with a clear word, and by the kernel where the hook has been got round.
REACH = {
    "fork bomb": "import os\ndef f():\n while True: os.fork()",
    "read a file": "def f(): return open('/etc/passwd').read()",
    "list a folder": "import os\ndef f(): return os.listdir('.')",
    "write a file here": "def f(): return open('here', 'w')",
    "write a file elsewhere": "def f(): return open(%r, 'w')",
    "delete a file": "import os\ndef f(): os.remove(%r)",
    "rename a file": "import os\ndef f(): os.rename(%r, 'x')",
    "start a program": "import os\ndef f(): os.execv('/bin/sh', ['sh'])",
    "spawn a program": "import os\ndef f(): os.posix_spawn('/bin/sh', ['sh'], {})",
    "signal the parent": "import os\ndef f(): os.kill(os.getppid(), 9)",
    "signal everybody": "import os\ndef f(): os.kill(-1, 9)",
    "raise its limits": "import resource\ndef f(): resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000))",
}


@pytest.mark.parametrize("hook", [True, False], ids=["both fences", "the kernel alone"])
@pytest.mark.parametrize("name", REACH)
def test_nothing_outside_can_be_reached(name, hook, tmp_path):
    if not hook and not FENCED:
        pytest.skip("the kernel's fence exists on Linux only")
    victim = tmp_path / "victim"
    victim.write_text("alive")
    program = REACH[name]
    result = attempt(program % str(victim) if "%r" in program else program, audit_hook=hook)
    assert result.passed == (False,)
    assert any(word in result.message for word in ("PermissionError", "not permitted", "not allowed")), result
    assert victim.read_text() == "alive" and list(tmp_path.iterdir()) == [victim]
    assert not FENCED or not children()


NATIVE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def f(*numbers):
    out = []
    for n, arguments in numbers:
        libc.syscall(n, *arguments)
        out.append(ctypes.get_errno())
    return out
"""


@pytest.mark.skipif(not (FENCED and platform.machine() == "x86_64"), reason="system call numbers of x86-64 Linux")
def test_native_code_is_fenced_in_too():
    """Straight system calls, no Python between: sockets, clone, fork, vfork, kill, ptrace, openat, prlimit, unshare,
    mount, io_uring, memfd, bpf, setsid; each must come back with EPERM (1)."""
    tried = [
        (41, (2, 1, 0)),
        (53, (1, 1, 0, 0)),
        (56, (17, 0, 0, 0, 0)),
        (57, ()),
        (58, ()),
        (62, (os.getpid(), 0)),
        (101, (16, os.getpid(), 0, 0)),
        (257, (-100, b"/etc/passwd", 0)),
        (302, (0, 0, 0, 0)),
        (272, (0x10000000,)),
        (165, (0, 0, 0, 0, 0)),
        (425, (1, 0)),
        (319, (b"x", 0)),
        (321, (0, 0, 0)),
        (112, ()),
        (435, (0, 0)),
        (310, (os.getpid(), 0, 0, 0, 0, 0)),
    ]
    assert attempt(NATIVE, [(tuple(tried), [1] * len(tried))], audit_hook=False).ok


@pytest.mark.skipif(not FENCED, reason="a thread is refused by the kernel only")
def test_no_threads_and_no_modules_from_disk():
    assert (
        "can't start new thread"
        in attempt("import _thread\ndef f(): _thread.start_new_thread(print, ())", audit_hook=False).message
    )
    assert "No module named" in attempt("import socket", audit_hook=False).message


def test_fences_are_tried_out_and_strict_needs_the_kernel():
    held = fences()
    assert set(held) == {"seccomp", "rlimits", "audit hook"} and held["audit hook"] == ""
    result = attempt("def f(): return 1", strict=True)
    assert result.ok if held["seccomp"] == "" else result.outcome == "refused"
    if FENCED:
        assert held == {"seccomp": "", "rlimits": "", "audit hook": ""}


@pytest.mark.skipif(not FENCED, reason="needs the kernel's signal on a parent's death")
def test_the_child_dies_with_a_killed_parent():
    import subprocess

    code = (
        "from minglm.rl.sandbox import *\nprint('go', flush=True)\n"
        "run('import time\\ndef f(): time.sleep(300)', 'f', [((), 1)], Limits(time_s=200))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    parent.stdout.readline()

    def mine():
        return [p for p in Path("/proc").glob("[0-9]*/stat") if (t := _stat(p)) and t[1] == str(parent.pid)]

    def fenced():  # it has asked for the signal by then
        return [p for p in mine() if "Seccomp:\t2" in p.with_name("status").read_text()]

    deadline = time.monotonic() + 120
    while not fenced() and time.monotonic() < deadline:
        time.sleep(0.05)
    found = fenced()
    assert found
    parent.kill()
    parent.wait(60)
    while any(_stat(p) for p in found) and time.monotonic() < deadline + 120:
        time.sleep(0.05)
    assert not any(_stat(p) for p in found)


def _stat(path: Path) -> list[str] | None:
    try:
        fields = path.read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields


def test_bad_input_says_value_rule_and_remedy():
    for call, words in [
        (lambda: run("", "f g", ONE), "function 'f g'"),
        (lambda: run("", "f", []), "no tests"),
        (lambda: Limits(time_s=0), "time_s=0"),
        (lambda: Limits(memory_bytes=1), "memory_bytes=1"),
        (lambda: Limits(cpu_s=float("inf")), "cpu_s=inf"),
    ]:
        with pytest.raises(InputError, match=words) as err:
            call()
        assert "\n" not in str(err.value)
