"""What no machine and no market has: a figure in another unit than its key's is refused with the reading that fits.

The bounds are far outside of anything built or sold; they catch a thousand for one, not a bold guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from minglm.errors import InputError
from sim.base.figure import Figure, figure


class Bound(NamedTuple):
    """The range of a key in SI units, what lies outside of it in words, and what the number is likely to mean."""

    least: float
    most: float
    words: str
    meant: Callable[[float], str]


BOUNDS = {
    "memory_bytes": Bound(1e6, 1e18, "bytes is no memory of a chip", lambda v: f"'{v:g} GB'"),
    "memory_bytes_per_s": Bound(
        5e9,
        math.inf,
        "bytes/s is no rate of a chip's memory",
        lambda v: f"'{v:g} GB/s'" if v < 1e6 else f"'{v / 1e6:g} GB/s'",
    ),
    "peak_flops": Bound(1e9, 1e19, "FLOP/s is no peak of a chip", lambda v: f"'{v:g} TFLOPS'"),
    "power_w": Bound(
        1.0,
        1e5,
        "W is no power of a chip's board",
        lambda v: f"{v * 1000:g} or '{v:g} kW'" if v < 1 else f"{v / 1000:g}",
    ),
    "pue": Bound(
        1.0,
        10.0,
        "is no PUE (1.0 at best, about 1.1 to 2)",
        lambda v: f"{v / 100:g}" if v >= 100 else "1.2",
    ),
    "electricity_usd_per_kwh": Bound(
        0.0, 5.0, "$ a kWh is more than electricity costs (about 0.05 to 0.40)", lambda v: f"'${v:g}/MWh'"
    ),
    # lignite and diesel emit 1.0 to 1.3
    "carbon_kg_per_kwh": Bound(
        0.0,
        3.0,
        "kg of CO2 a kWh is more than any electricity emits (coal: about 1)",
        lambda v: f"{v / 1000:g} or '{v:g} g/kWh'",
    ),
    "storage": Bound(1e3, 1e18, "bytes/s is no rate of a storage", lambda v: f"'{v:g} GB/s'"),
}


def plausible(value: float, key: str, label: str) -> float:
    """The value in SI units, where it lies within the bounds of its key; keys without bounds take any.

    Raises:
        InputError: it lies outside.
    """
    bound = BOUNDS.get(key)
    if bound and not bound.least <= value <= bound.most:
        raise InputError(f"{label}: {value:g} {bound.words}; where the unit is another, write {bound.meant(value)}")
    return value


def plausible_figure(raw: object, dimension: str, key: str, label: str) -> Figure:
    """A `Figure` whose value and range lie within the bounds of its key.

    Raises:
        InputError: no figure, or one that lies outside.
    """
    found = figure(raw, dimension, label)
    for value in (found.value, found.low, found.high):
        plausible(value, key, label)
    return found
