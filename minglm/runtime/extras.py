"""What the optional parts of this project need: the packages of each extra, and one sentence where they are missing."""

from __future__ import annotations

import importlib.util

from minglm import datafiles
from minglm.errors import InputError

# Extra of pyproject.toml → packages as they are imported. Its parts are asked for where they are used.
EXTRAS = {
    "train": ("torch", "numpy", "tokenizers", "safetensors"),
    "lab": ("jupyterlab", "ipywidgets", "anywidget", "nbconvert", "nbclient", "matplotlib"),
    "dist": ("ray", "fastapi", "uvicorn", "prometheus_client"),
    "dev": ("pytest", "hypothesis", "transformers", "playwright", "ruff", "jsonschema"),
}


def missing(packages: tuple[str, ...]) -> list[str]:
    """Those of `packages` that cannot be imported; none of them is imported to find out."""
    return [package for package in packages if importlib.util.find_spec(package) is None]


def require(extra: str, *packages: str) -> None:
    """Refuse in one line where packages of an extra are not installed.

    Args:
        extra: a key of EXTRAS.
        packages: those of its packages that are needed; all when none is named.

    Raises:
        InputError: with the names of the missing packages and the command that installs them.
    """
    absent = missing(packages or EXTRAS[extra])
    if absent:
        also = datafiles.hint(" or call `make demo`", "") if extra == "train" else ""
        raise InputError(f"not installed: {', '.join(absent)}; {datafiles.install_hint(extra)}{also}")
