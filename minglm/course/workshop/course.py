"""`minglm course DIR`: the notebooks and exercises as a folder of the learner's own, to open, change and keep.

A note in the folder (`NOTE`) holds the hash of every file as it was written. With it the same command brings an older
copy up to date and leaves alone whatever the learner has changed since.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from minglm import __version__, atomic, datafiles
from minglm.datafiles import COURSE_NOTE as NOTE
from minglm.errors import InputError


@dataclass(frozen=True)
class Copied:
    """What `copy` did: files written, files that were the same already, files kept because the learner changed them."""

    written: int
    same: int
    kept: tuple[str, ...]


def copy(folder: Path) -> Copied:
    """Write the course into `folder`: learn/, scale/, plan/, workshop/.

    Raises:
        InputError: the folder holds something else, is a file, lies in the checkout's own notebooks, or cannot be
            written.
    """
    source = datafiles.notebooks()
    if folder.resolve().is_relative_to(source):
        raise InputError(f"{folder}: these are the notebooks themselves; give a folder of your own, such as my-course")
    files = {
        p.relative_to(source).as_posix(): p
        for p in sorted(source.rglob("*"))
        if p.suffix in (".ipynb", ".md", ".json") and ".ipynb_checkpoints" not in p.parts
    }
    if not files:
        datafiles.catalogue(source, ".ipynb")  # says what is missing and what helps
    before = _noted(folder)
    written, same, kept = 0, 0, []
    try:
        for name, path in files.items():
            target, new = folder / name, path.read_bytes()
            old = target.read_bytes() if target.is_file() else None
            if old == new:
                same += 1
            elif old is not None and _hash(old) != before.get(name):
                kept.append(name)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                atomic.write_bytes(target, new)
                written += 1
            if name not in kept:
                before[name] = _hash(new)
        atomic.write_json(folder / NOTE, {"version": __version__, "files": before})
    except OSError as err:
        raise InputError(
            f"{err.filename or folder}: cannot be written ({err.strerror or err}); give another folder"
        ) from None
    return Copied(written, same, tuple(kept))


def _noted(folder: Path) -> dict[str, str]:
    """The hashes of an earlier copy; of a new or empty folder, none."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return {}
    try:
        return dict(json.loads((folder / NOTE).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{folder}: {'is not empty and holds no course' if folder.is_dir() else 'is a file'}; give a new folder, "
            "such as my-course"
        ) from None


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
