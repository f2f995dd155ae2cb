"""`minglm workshop wheelhouse`: every package of the course in one folder, for laptops without a network.

pip does the work: it builds this project's wheel, downloads what the extras need in the versions of constraints.txt,
and then resolves them once more from the folder alone. Only a folder that passes that is called complete.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from minglm import __version__, atomic, datafiles
from minglm.errors import InputError

EXTRAS = ("train", "lab", "dist")
Run = Callable[[list[str]], "subprocess.CompletedProcess[str]"]


def _pip(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def commands(
    root: Path, folder: Path, extras: Sequence[str], platform: str | None = None, python: str | None = None
) -> list[list[str]]:
    """pip's arguments, in order: build the wheel, download the rest, resolve from the folder alone."""
    wanted = f"minglm[{','.join(extras)}]" if extras else "minglm"
    other = [f"--platform={platform}"] * bool(platform) + [f"--python-version={python}"] * bool(python)
    only = ["--only-binary=:all:"] * bool(other)
    here = [f"--dest={folder}", f"--find-links={folder}"]
    exact = f"{wanted}=={__version__}"
    return [
        ["wheel", "--no-deps", f"--wheel-dir={folder}", str(root)],
        ["download", *here, f"--constraint={root / 'constraints.txt'}", *other, *only, exact],
        ["download", "--no-index", *here, *other, *only, exact],
    ]


def build(
    folder: Path,
    extras: Sequence[str] = EXTRAS,
    platform: str | None = None,
    python: str | None = None,
    run: Run | None = None,
) -> list[Path]:
    """Fill the folder; returns its packages.

    Args:
        extras: of pyproject.toml. platform, python: what pip calls those of the laptops, such as "win_amd64" and
            "3.12"; this machine's where left out.

    Raises:
        InputError: not a checkout, a folder that holds something else, an extra that is not there, or pip failed.
    """
    root = datafiles.root()
    if root is None:
        raise InputError("wheelhouse: builds this project's wheel, so it needs a checkout; run it in one")
    known = _extras(root)
    if unknown := [e for e in extras if e not in known]:
        raise InputError(f"extra {unknown[0]!r}: not one of {', '.join(known)}")
    if folder.exists() and not (folder / "README.md").is_file() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty and no wheelhouse; give a new folder, such as runs/wheelhouse")
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / "README.md", _readme(extras))
    for arguments in commands(root, folder, extras, platform, python):
        done = (run or _pip)(arguments)
        if done.returncode:
            last = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            raise InputError(f"pip {arguments[0]}: {last[-1].strip()[:300]}; what was downloaded is kept, try again")
    return sorted(p for p in folder.iterdir() if p.suffix in (".whl", ".gz", ".zip"))


def _extras(root: Path) -> list[str]:
    import tomllib

    return list(
        tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )


def _readme(extras: Sequence[str]) -> str:
    wanted = f"minglm[{','.join(extras)}]" if extras else "minglm"
    return (
        f"# minglm {__version__}, without a network\n\nIn this folder:\n\n"
        "    python -m venv course\n"
        f"    course/bin/pip install --no-index --find-links . '{wanted}'\n\n"
        "(Windows: `course\\Scripts\\pip`.) Then `course/bin/minglm course my-course` copies the notebooks, and\n"
        "`course/bin/minglm lab` opens them.\n"
    )
