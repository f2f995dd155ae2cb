"""One writer to a run folder: a file in it that names its owner, and that a dead owner does not leave in the way.

The lock is a file made with O_EXCL, which network disks keep too; `flock` is not used, so nothing is missing where it
is. It holds the owner's process, when that started, and its machine. A lock whose process has ended on this machine is
taken over. That of another machine cannot be looked up from here: it is refused, with the file to delete.

Within one process a thread may take a lock again that it holds (a stage of a demo, a cell that runs again).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minglm import atomic
from minglm.errors import InputError

LOCK = ".minglm-lock"
_TAKING = ".minglm-lock-taking"  # held while a dead owner's lock is replaced, so that only one replaces it
NAMES = (LOCK, _TAKING)
_TORN_S = 2.0  # an empty lock is one between its making and its first word, or what a kill left there


class Locked(InputError):
    """Somebody else writes in the folder."""


@dataclass
class _Held:
    """A lock of this process."""

    pid: int  # of the process that took it: a fork inherits this table, not the lock
    thread: threading.Thread
    token: str
    depth: int = 1


_held: dict[str, _Held] = {}
_table = threading.Lock()


@contextlib.contextmanager
def hold(folder: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Be the only writer in `folder`, which is made when missing, until the block ends.

    Args:
        what: the writer in the words of a message, such as "minglm train".
        wait: for as long as the owner lives, said once, instead of refusing. For what several runs share.

    Raises:
        Locked: another process, or another thread of this one, holds it.
        InputError: `folder` is a file or a link that leads nowhere.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder}: a file or a broken link, not a folder; give another folder") from None
    key, said = os.path.realpath(folder), False
    while True:
        try:
            token = _take(key, folder, what)
            break
        except Locked as err:
            if not wait:
                raise
            if not said:
                print(f"{str(err).partition(';')[0]}; waiting for it", file=sys.stderr, flush=True)
            said = True
            time.sleep(0.2)
    try:
        yield
    finally:
        _release(key, token)


def refuse_held(folder: Path) -> None:
    """Raise Locked when another process holds the folder: a look before something takes long; only `hold` is sure."""
    note = _read(Path(folder) / LOCK)
    if note and note["pid"] != os.getpid() and not _is_dead(note):
        raise Locked(_refusal(folder, note))


def owner(folder: Path) -> str | None:
    """Who writes in the folder, as a message says it; None when nobody does, as far as this machine can tell."""
    note = _read(Path(folder) / LOCK)
    return None if note is None or _is_dead(note) else _described(note)


def sweep(folder: Path) -> None:
    """Delete what writers that were killed left half written in `folder`; their process is in its name."""
    for path in folder.glob(f"{atomic.PREFIX}*-*"):
        pid = path.name.removeprefix(atomic.PREFIX).partition("-")[0]
        if pid.isdigit() and _born(int(pid)) is None and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def _take(key: str, folder: Path, what: str) -> str:
    with _table:
        mine = _held.get(key)
        if mine is not None and mine.pid == os.getpid():
            if mine.thread is not threading.current_thread() and mine.thread.is_alive():
                raise Locked(f"{folder}: another thread of this process writes there; wait for it or stop it")
            mine.thread, mine.depth = threading.current_thread(), mine.depth + 1
            return mine.token
        token = secrets.token_hex(8)
        note = {
            "what": what,
            "pid": os.getpid(),
            "born": _born(os.getpid()),
            "host": platform.node(),
            "machine": _machine(),
            "time": time.time(),
            "token": token,
        }
        _make(Path(key), folder, note)
        _held[key] = _Held(os.getpid(), threading.current_thread(), token)
    sweep(Path(key))
    return token


def _release(key: str, token: str) -> None:
    with _table:
        mine = _held.get(key)
        if mine is None or mine.pid != os.getpid() or mine.token != token:
            return
        mine.depth -= 1
        if mine.depth:
            return
        del _held[key]
        path = Path(key) / LOCK
        if (_read(path) or {}).get("token") == token:  # else the folder was moved, or the lock deleted by hand
            path.unlink(missing_ok=True)


def _make(real: Path, folder: Path, note: dict) -> None:
    """Write the lock; a dead owner's is replaced.

    Raises:
        Locked: its owner lives, or is on another machine.
    """
    path, taking = real / LOCK, real / _TAKING
    while not _create(path, note):
        there = _settled(path)
        if there is None:
            continue
        if not _is_dead(there):
            raise Locked(_refusal(folder, there))
        if not _create(taking, note):
            other = _settled(taking)
            if other is not None and _is_dead(other):
                taking.unlink(missing_ok=True)
            time.sleep(0.02)
            continue
        try:  # between the look and this moment another may have replaced it
            if (_read(path) or {}).get("token") == there.get("token"):
                path.unlink(missing_ok=True)
        finally:
            taking.unlink(missing_ok=True)


def _create(path: Path, note: dict) -> bool:
    """Make the file with this content, unless it is there."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(handle, json.dumps(note).encode())
    except OSError:
        os.close(handle)
        path.unlink(missing_ok=True)
        raise
    os.close(handle)
    return True


def _read(path: Path) -> dict | None:
    """What a lock says; {} when it cannot be read, None when there is none."""
    try:
        note = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) and isinstance(note.get("pid"), int) else {}


def _settled(path: Path) -> dict | None:
    """As `_read`, once its writer had the time to write it."""
    end = time.monotonic() + _TORN_S
    while (note := _read(path)) == {} and time.monotonic() < end:
        time.sleep(0.05)
    return note


def _is_dead(note: dict) -> bool:
    """Whether the owner has ended for certain. What a kill left empty has no owner."""
    if not note:
        return True
    if (note.get("host"), note.get("machine")) != (platform.node(), _machine()):
        return False
    born = _born(note["pid"])
    return born is None or bool(born and note.get("born") and born != note["born"])


def _described(note: dict) -> str:
    began = note.get("time")
    since = time.strftime(" since %Y-%m-%d %H:%M", time.localtime(began)) if isinstance(began, (int, float)) else ""
    return f"{note.get('what', 'a writer')}, process {note['pid']} on {note.get('host') or 'this machine'}{since}"


def _refusal(folder: Path, note: dict) -> str:
    if (note.get("host"), note.get("machine")) == (platform.node(), _machine()):
        return f"{folder}: in use by {_described(note)}; wait for it, stop it, or give another folder"
    return (
        f"{folder}: in use by {_described(note)}, which cannot be looked up from here; wait for it, or if it has "
        f"ended, delete {folder / LOCK}"
    )


def _machine() -> str:
    """What tells machines of one name apart, and containers of one machine: process numbers mean nothing elsewhere."""
    parts = []
    for path in ("/etc/machine-id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            parts.append(
                os.readlink(path) if path.startswith("/proc") else Path(path).read_text(encoding="utf-8").strip()
            )
    return "/".join(parts)


def _born(pid: int) -> str | None:
    """When a process of this machine started, in the system's own words, "" where it does not say; None: it has ended.

    A number is used again after a while, so alive means the same number and the same start. A process that waits to be
    reaped writes no more. Windows' branch was not run.
    """
    if os.name == "nt":
        return _born_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (PermissionError, OverflowError):
        pass  # another user's
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        told = subprocess.run(
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, env={"LC_ALL": "C"}
        )
    except OSError:
        return ""
    return None if told.stdout.lstrip().startswith("Z") else told.stdout.strip().partition(" ")[2].strip()


def _born_windows(pid: int) -> str | None:
    import ctypes  # the standard library's way to the system calls; os.kill ends a process there

    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    query, still_active, denied = 0x1000, 259, 5
    handle = kernel.OpenProcess(query, False, pid)
    if not handle:
        return "" if kernel.GetLastError() == denied else None
    try:
        code, times = ctypes.c_ulong(), [ctypes.c_ulonglong() for _ in range(4)]
        if kernel.GetExitCodeProcess(handle, ctypes.byref(code)) and code.value != still_active:
            return None
        return str(times[0].value) if kernel.GetProcessTimes(handle, *map(ctypes.byref, times)) else ""
    finally:
        kernel.CloseHandle(handle)
