"""Whose folder is it: a run folder carries a manifest, and only a folder that carries one is ever cleared.

`--overwrite` used to delete what it was pointed at. Now a folder is *set aside*: moved to `.trash-<time>-<name>` in the
same parent, so that a mistake costs a rename. A folder without our manifest, a link, and any folder that holds the
home, the working directory or the root are refused.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path

from minglm import atomic
from minglm.errors import InputError

MANIFEST = "minglm-run.json"


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


def kind_of(folder: Path) -> str | None:
    """The kind in the folder's manifest, or None when it carries none that can be read as ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("project") != "minglm" or not manifest.get("id"):
        return None
    return str(manifest.get("kind"))


def is_foreign(folder: Path, kind: str) -> bool:
    """Whether the folder holds something, and not a run of this kind."""
    return folder.is_dir() and any(folder.iterdir()) and kind_of(folder) != kind


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
    if not any(folder.iterdir()):
        return None
    marked_as = kind_of(folder)
    if marked_as != kind:
        what = (
            "carries no minglm-run.json, so this project did not make it"
            if marked_as is None
            else f"is a folder of kind {marked_as!r}, not {kind!r}"
        )
        raise InputError(f"{folder}: {what} and does not clear it; give another folder, or move this one away yourself")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target = next(
        t for n in range(1000) if not (t := real.parent / f".trash-{stamp}{f'-{n}' if n else ''}-{real.name}").exists()
    )
    os.rename(real, target)
    print(f"{folder}: set aside as {target}; delete that when you no longer need it")
    return target
