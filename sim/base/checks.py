"""Checks on an answer before it leaves: finite, not negative, made by which versions."""

from __future__ import annotations

import math

from minglm import __version__
from minglm.errors import InputError
from sim.base.tape import Number


def check_finite(value: object, where: str = "result") -> None:
    """No NaN, infinity or negative figure leaves the simulator unnoticed."""
    if isinstance(value, dict):
        for k, v in value.items():
            check_finite(v, f"{where}.{k}")
    elif isinstance(value, list):
        for v in value:
            check_finite(v, where)
    elif isinstance(value, float) and (not math.isfinite(value) or value < -1e-9):
        raise InputError(f"{where}={value}: an input is out of range; check peaks, bandwidths, prices and batch")


def is_at_least(value: object, least: float) -> bool:
    """Whether it is a finite number of at least `least`."""
    if isinstance(value, Number):
        return bool(value >= least) and bool(value < math.inf)
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= least


def versions() -> dict[str, str]:
    """Versions of Python, this project and SimPy, for an answer's record."""
    import platform
    from importlib import metadata

    out = {"python": platform.python_version(), "minglm": __version__}
    try:
        out["simpy"] = metadata.version("simpy")
    except metadata.PackageNotFoundError:
        pass
    return out
