"""Types of numeric arguments: `parser.add_argument("--problems", type=COUNT)`. The rule that is broken is said in the
one line that argparse gives to bad input, with a value that is taken.
"""

from __future__ import annotations

import argparse
import math
import unicodedata
from collections.abc import Callable, Mapping

from minglm import numbers
from minglm.settings import MOST_SEED

_SCALES: Mapping[str, float] = {
    "": 1,
    "k": 10**3,
    "K": 10**3,
    "M": 10**6,
    "B": 10**9,
    "G": 10**9,
    "T": 10**12,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
}


def whole(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """A whole number from `minimum` up to and with `maximum`, such as 4096, 4k or 4Ki."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # int() refuses thousands of digits with it, too
            read = _read(text, "a whole number", minimum, _SCALES, counted=True)
            if not math.isfinite(read) or read != int(read):
                raise _refusal(text, "must be a whole number", minimum) from None
            value = int(read)
        if value < minimum or (maximum is not None and value > maximum):
            end = "" if maximum is None else f" and at most {maximum}"
            raise argparse.ArgumentTypeError(f"{text[:40]}: must be at least {minimum}{end}")
        return value

    return convert


def number(
    above: float | None = None, minimum: float | None = None, maximum: float | None = None, counted: bool = False
) -> Callable[[str], float]:
    """A finite number, larger than `above`, or from `minimum` up to and with `maximum`; up to 1 also as 90%.

    Args:
        counted: of tokens or other things that are counted: 128k is read, 1.000 may be one or a thousand.
    """
    example = maximum if maximum is not None else max(minimum or 0.0, (above or 0.0) + 1.0)
    scales: Mapping[str, float] = {"": 1, "%": 0.01} if maximum == 1 else _SCALES if counted else {"": 1}

    def convert(text: str) -> float:
        value = _read(text, "a number", example, scales, counted)
        if not math.isfinite(value):
            raise _refusal(text, "must be a finite number", example)
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


def _read(text: str, kind: str, example: float, scales: Mapping[str, float], counted: bool) -> float:
    """The number of an argument; a dollar in front is left out.

    Raises:
        argparse.ArgumentTypeError: not a number, or one of two readings.
    """
    found = numbers.leading_number(unicodedata.normalize("NFKC", text[:100]).strip().removeprefix("$").strip())
    if found and found[1] in scales:
        try:
            return numbers.number(found[0], whole=counted and not found[1]) * scales[found[1]]
        except numbers.TwoReadingsError as two:
            both = " or ".join(reading + found[1] for reading in two.readings)
            raise argparse.ArgumentTypeError(
                f"{text[:40]!r}: must be {kind}, and its sign may part decimals or thousands; write {both}"
            ) from None
        except ValueError:
            pass
    try:
        return float(text)  # what is not finite has a word of its own
    except ValueError:
        raise _refusal(text, f"must be {kind}", example) from None


def _refusal(text: str, rule: str, example: float) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text[:40]!r}: {rule}; give for example {example:g}")


COUNT = whole(1, 10**9)
SEED = whole(0, MOST_SEED)
