"""`minglm lab`: the notebooks in JupyterLab."""

from __future__ import annotations

import argparse
import subprocess
import sys

from minglm import datafiles
from minglm.errors import InputError
from minglm.runtime import extras

TEXT = "open the notebooks in JupyterLab"
EXAMPLES = "minglm lab\nminglm lab -- --port 9000"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rest", nargs="*", help="further arguments for jupyter lab, after --")


def main(args: argparse.Namespace) -> int:
    if extras.missing(("jupyterlab",)):
        raise InputError(
            "jupyterlab is not installed; " + datafiles.hint("call `make lab`", datafiles.install_hint("train,lab"))
        )
    own = datafiles.course()
    if own is None and datafiles.root() is None:  # what is installed is not for writing into
        raise InputError(
            "the notebooks are not in this folder; minglm course my-course copies them, "
            "then cd my-course and call minglm lab"
        )
    first = (own or datafiles.notebooks()) / "learn" / "00_start_here.ipynb"
    return subprocess.call([sys.executable, "-m", "jupyterlab", *([str(first)] if first.is_file() else []), *args.rest])
