"""The one way a file is written: beside its place, then renamed into it.

A reader, another writer, a kill and a full disk meet the old file or the new one, never a part of either; a memory map
of the old one stays whole. `tests/house/test_writing.py` counts who writes otherwise: nobody. Standard library only,
for it runs in a browser too.

    write_text write_bytes write_json write_csv copy    a whole file from what is in memory
    opened                                              a whole file, written piece by piece
    beside                                              the same for a library that wants a path
    publish                                             a whole folder that was filled beside its place
    appending                                           a log that grows line by line and is never rewritten

`durable=True` waits until the disk has it: what a resumed run depends on. What is no regular file (/dev/stdout, a pipe)
is written in place, and a link is followed: the file it leads to is replaced, the link stays.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TextIO

# Of a file or folder that is not complete yet. A kill may leave one; it is nobody's result.
PREFIX = ".writing_"
# What a disk answers that cannot flush one file: it is written all the same.
_CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def beside(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """A path to write to; when the block ends well, what was written there gets the name `path`, else it is deleted.

    Raises:
        OSError: of the disk, with the name of the file that was wanted.
    """
    given = Path(path)
    if given.exists() and (not given.is_file() or given.parts[:2] in (("/", "dev"), ("/", "proc"))):
        yield given  # a device, a pipe, an open descriptor; of a folder, the writer says that it is one
        return
    final = Path(os.path.realpath(given))
    temporary = final.with_name(f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield temporary
        if durable:
            flush(temporary)
        with contextlib.suppress(OSError):  # the file's own permissions outlive its content
            shutil.copymode(final, temporary)
        os.replace(temporary, final)
        if durable:
            flush(final.parent)
    except OSError as err:
        if str(err.filename) != str(temporary):
            raise
        raise OSError(err.errno, err.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def opened(path: str | Path, binary: bool = False, newline: str | None = None, durable: bool = False) -> Iterator[IO]:
    """A new file to write to, UTF-8 or bytes, which takes the place of `path` when the block ends well."""
    with beside(path, durable) as temporary:
        kind = {"mode": "wb"} if binary else {"mode": "w", "encoding": "utf-8", "newline": newline}
        with open(temporary, **kind) as file:
            yield file


def write_text(path: str | Path, text: str, newline: str | None = None, durable: bool = False) -> None:
    """The whole text of a file, as UTF-8."""
    with opened(path, newline=newline, durable=durable) as file:
        file.write(text)


def write_bytes(path: str | Path, data: bytes, durable: bool = False) -> None:
    """The whole content of a file."""
    with opened(path, binary=True, durable=durable) as file:
        file.write(data)


def write_json(path: str | Path, value: Any, indent: int | None = 1, durable: bool = False, **options: Any) -> None:
    """A value as JSON with a line end behind it; `options` are `json.dumps`'s."""
    write_text(path, json.dumps(value, indent=indent, **options) + "\n", durable=durable)


def write_csv(path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], **options: Any) -> None:
    """Rows under a header; `options` are `csv.DictWriter`'s."""
    with opened(path, newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n", **options)
        table.writeheader()
        table.writerows(rows)


def copy(source: str | Path, target: str | Path) -> None:
    """The content of one file as another."""
    with open(source, "rb") as from_, opened(target, binary=True) as to:
        shutil.copyfileobj(from_, to)


def publish(folder: Path, final: Path) -> None:
    """Give a filled folder its name, once the disk has all its files; an older folder of that name goes."""
    for path in folder.iterdir():
        flush(path)
    flush(folder)
    old = final.with_name(f"{PREFIX}{final.name}-old")
    if final.exists():
        os.rename(final, old)
    os.replace(folder, final)
    flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def appending(path: str | Path, newline: str | None = None) -> TextIO:
    """A log to append whole lines to. A last line that a kill cut off is dropped first."""
    path = Path(path)
    if path.is_file():
        _drop_torn_line(path)
    return open(path, "a", encoding="utf-8", newline=newline)


def _drop_torn_line(path: Path) -> None:
    with open(path, "rb") as file:
        data = file.read()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def flush(path: Path) -> None:
    """Force a file or folder to the disk; where folders cannot be opened (Windows), renaming is enough."""
    try:
        handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    except (PermissionError, IsADirectoryError):
        return
    try:
        sync(handle)
    finally:
        os.close(handle)


def sync(handle: int) -> None:
    """`os.fsync`, on a disk that has no such thing too."""
    try:
        os.fsync(handle)
    except OSError as err:
        if err.errno not in _CANNOT_FLUSH:  # no room, or the disk is broken: the caller must hear of it
            raise
