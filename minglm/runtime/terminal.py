"""What holds between any program of this repository and its terminal: encodings, pipes, errors in one line, exit codes.

Exit codes: 0 done, 1 it ran and the answer is a failure (a full disk too), 2 bad input, 130 stopped by Ctrl-C,
141 cut off because nobody reads the output any more.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import select
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

from minglm.errors import InputError

LONGEST = 1000  # signs of a message

# A path that was given wrongly; other errors of the system, such as a full disk, end a run and are no bad input.
_BAD_PATH = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.EROFS,
    errno.ELOOP,
    errno.EINVAL,
)


def guard(act: Callable[[], int]) -> int:
    """Run `act` as a program: the exit code, with whatever goes wrong told in one line on stderr.

    Of a reader that has gone (`| head`) nothing is said: 141 where that cut the work off, else the work's own code.
    """
    open_streams()
    code = 141  # what a shell says of a program that was cut off by a closed pipe
    try:
        try:
            code = act()
        finally:
            flush()
        return code
    except InputError as err:
        return _tell(f"error: {err}", 2)
    except KeyboardInterrupt as stop:
        return _tell(str(stop) or "stopped", 130)
    except MemoryError as err:
        return _tell(f"failed: not enough memory{f' ({err})' if str(err) else ''}; give it a smaller task", 1)
    except OSError as err:
        closed = isinstance(err, BrokenPipeError) and any(map(_reader_gone, _streams()))
        if closed or (os.name == "nt" and err.errno == errno.EINVAL and not err.filename):  # Windows' word for it
            return code
        where = f"{err.filename}: " if err.filename else ""
        if err.errno in _BAD_PATH:
            return _tell(f"error: {where}{err.strerror or err}; check the path and its permissions", 2)
        return _tell(f"failed: {type(err).__name__}: {where}{err.strerror or err}", 1)
    finally:
        _silence()


def open_streams() -> None:
    """Let stdout and stderr take any text: what their encoding lacks becomes a question mark, here and in children.

    Windows gives a pipe cp1252 or cp437, a bare container ascii. A stream that was closed before the start swallows.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):  # a notebook's has no encoding to lack anything
            stream.reconfigure(errors="replace")
    encoding = os.environ.get("PYTHONIOENCODING", "")
    if ":" not in encoding:
        os.environ["PYTHONIOENCODING"] = f"{encoding}:replace"


def flush() -> None:
    """Write out what stdout and stderr hold back, so that a failure to do so is met here and not at the very end."""
    for stream in _streams():
        stream.flush()


def check_text(argv: Iterable[str]) -> None:
    """Raise InputError for an argument that is no text: bytes which are not UTF-8."""
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = argument.encode(errors="replace").decode()
            raise InputError(f"{shown[:80]!r}: not UTF-8; give text, and names of files, in UTF-8") from None


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON for machines: what is no finite number is null, for NaN and Infinity are not JSON."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _streams() -> list[TextIO]:
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None and not stream.closed]


def _tell(text: str, code: int) -> int:
    """One line on stderr: of a very long value its beginning, of a sign that no terminal shows its name."""
    line = re.sub(r"\S{200,}", lambda word: word[0][:80] + "...", " ".join(text.split()))
    line = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)
    with contextlib.suppress(OSError):
        print(line if len(line) <= LONGEST else line[: LONGEST - 3] + "...", file=sys.stderr, flush=True)
    return code


def _reader_gone(stream: TextIO) -> bool:
    """Is this stream a pipe that nobody reads?"""
    try:
        stream.flush()
        if not hasattr(select, "poll"):  # Windows
            return False
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except BrokenPipeError:
        return True
    except OSError:  # no file of the system
        return False


def _silence() -> None:
    """Point a stream that cannot be written at nothing: else Python says so once more when it ends, with code 120."""
    for stream in _streams():
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
