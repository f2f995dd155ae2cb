"""Whose folder is it: a run folder carries a manifest, and only a folder that carries one is ever cleared.

`--overwrite` used to delete what it was pointed at. Now a folder is *set aside*: moved to `.trash-<time>-<name>` in the
same parent, so that a mistake costs a rename. Refused are a folder without our manifest, a link, one that somebody
writes in, and any that holds the home, the working directory or the root.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minglm import atomic
from minglm.errors import InputError
from minglm.runtime import run_lock

MANIFEST = "minglm-run.json"
LEFTOVERS = ("recipe.yaml.tmp",)  # of a disk that was full at the first word of a run of an earlier version


def claim(folder: Path, kind: str) -> Path:
    """Make `folder` where it is missing and mark it as ours; an existing manifest is kept. Returns the folder.

    Args:
        kind: what makes it: train, rl, demo, book, site, checkpoints.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MANIFEST).is_file():
        mark = {"project": "minglm", "kind": kind, "id": uuid.uuid4().hex}
        atomic.write_json(folder / MANIFEST, mark, indent=None, durable=True)
    return folder


@contextlib.contextmanager
def writing(folder: Path, kind: str, what: str, note: str = "") -> Iterator[None]:
    """Be the only one who writes a folder of this kind; it is made and marked when it is not there.

    Args:
        kind: as in `claim`. what: the writer in the words of a message, such as "minglm train".
        note: a file that shows a folder of this kind where the manifest is missing.

    Raises:
        InputError: the folder is somebody else's, of another kind, or in use.
    """

    check(folder, kind, note)  # before a lock is written into what is not ours
    with run_lock.hold(folder, what):
        check(folder, kind, note)
        claim(folder, kind)
        yield


def check(folder: Path, kind: str, note: str = "") -> None:
    """Raise InputError for what `writing` would refuse: for a command to say so before it loads torch."""
    if not note or kind_of(folder) is not None or not (folder / note).is_file():
        refuse_foreign(folder, kind)
    run_lock.refuse_held(folder)


def kind_of(folder: Path) -> str | None:
    """The kind in the folder's manifest, or None when it carries none that can be read as ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("project") != "minglm" or not manifest.get("id"):
        return None
    return str(manifest.get("kind"))


def result(path: Path) -> dict[str, Any] | None:
    """What an earlier call left in a JSON file; None where there is none, and, said, where a disk damaged it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        value = None
    if isinstance(value, dict):
        return value
    print(f"{path}: not readable, made again", file=sys.stderr)
    return None


def is_foreign(folder: Path, kind: str) -> bool:
    """Whether the folder holds something, and not a run of this kind."""
    return folder.is_dir() and not _is_empty(folder) and kind_of(folder) != kind


def refuse_foreign(folder: Path, kind: str) -> None:
    """Raise InputError for a folder that holds somebody else's files, or another kind of ours."""
    if is_foreign(folder, kind):
        raise InputError(f"{folder}: not empty, and {_not_ours(folder, kind)}; give another folder")


def _not_ours(folder: Path, kind: str) -> str:
    marked_as = kind_of(folder)
    if marked_as is None:
        return f"carries no {MANIFEST}, so this project did not make it"
    return f"is a folder of kind {marked_as!r}, not {kind!r}"


def _is_empty(folder: Path) -> bool:
    """Nothing in it but what a kill or a full disk leaves of our own writing."""
    return all(
        p.name in run_lock.NAMES or p.name.startswith(atomic.PREFIX) or p.name in LEFTOVERS for p in folder.iterdir()
    )


def set_aside(folder: Path, kind: str) -> Path | None:
    """Move a run folder out of the way and say where to; None when there is nothing there or it is empty.

    Raises:
        InputError: it is a link, not a folder, holds the working directory or the home, or carries no manifest of
            `kind`.
    """
    if folder.is_symlink():
        raise InputError(f"{folder}: is a link, and what lies behind a link is never cleared; give the folder itself")
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise InputError(f"{folder}: a file, not a folder; give another folder")
    real = folder.resolve()
    for name, holder in (("the working directory", Path.cwd()), ("your home", Path.home())):
        if holder.resolve().is_relative_to(real):
            raise InputError(f"{folder}: holds {name} and is never cleared; give another folder")
    if _is_empty(folder):
        return None
    if kind_of(folder) != kind:
        raise InputError(
            f"{folder}: {_not_ours(folder, kind)} and does not clear it; give another folder, or move this one away "
            "yourself"
        )
    with contextlib.ExitStack() as locks:
        for lock in [real / run_lock.LOCK, *sorted(real.rglob(f"*/{run_lock.LOCK}"))]:
            locks.enter_context(run_lock.hold(lock.parent, "--overwrite"))
        target = _free_name(real)
        try:
            os.rename(real, target)
        except OSError as err:
            raise InputError(f"{folder}: cannot be moved aside ({err.strerror or err}); give another folder") from None
        for lock in target.rglob(run_lock.LOCK):
            lock.unlink(missing_ok=True)
    print(f"{folder}: set aside as {target}; delete that when you no longer need it")
    return target


def _free_name(folder: Path) -> Path:
    """`.trash-<time>-<name>` beside it, the name short enough for any disk."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = (folder.parent / f".trash-{stamp}{f'-{n}' if n else ''}-{folder.name[:50]}" for n in range(1000))
    return next(p for p in names if not p.exists())
