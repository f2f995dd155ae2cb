"""Types of numeric arguments: `parser.add_argument("--problems", type=COUNT)`. The rule that is broken is said in the
one line that argparse gives to bad input.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from minglm.settings import MOST_SEED


def whole(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """A whole number from `minimum` up to and with `maximum`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # int() refuses thousands of digits with it, too
            raise argparse.ArgumentTypeError(f"{text[:40]!r}: must be a whole number") from None
        if value < minimum or (maximum is not None and value > maximum):
            end = "" if maximum is None else f" and at most {maximum}"
            raise argparse.ArgumentTypeError(f"{text[:40]}: must be at least {minimum}{end}")
        return value

    return convert


def number(above: float | None = None, minimum: float | None = None, maximum: float | None = None) -> Callable:
    """A finite number, larger than `above`, or from `minimum` up to and with `maximum`."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:40]!r}: must be a number") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text[:40]}: must be a finite number")
        if above is not None and value <= above:
            raise argparse.ArgumentTypeError(f"{text[:40]}: must be more than {above:g}")
        if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
            ends = [
                *([f"at least {minimum:g}"] if minimum is not None else []),
                *([f"at most {maximum:g}"] if maximum is not None else []),
            ]
            raise argparse.ArgumentTypeError(f"{text[:40]}: must be {' and '.join(ends)}")
        return value

    return convert


COUNT = whole(1, 10**9)
SEED = whole(0, MOST_SEED)
