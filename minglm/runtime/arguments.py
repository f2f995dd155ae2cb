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


def whole(minimum: int, maximum: int | None = None, length: bool = False) -> Callable[[str], int]:
    """A whole number from `minimum` up to and with `maximum`, such as 4096, 4k or 4Ki.

    Args:
        length: tokens of a sequence, where 4k is 4096 and 5k reads two ways.
    """

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # int() refuses thousands of digits with it, too
            read = _read(text, "a whole number", minimum, None if length else _SCALES, counted=True)
            if not math.isfinite(read) or read != int(read):
                raise _refusal(text, "must be a whole number", minimum) from None
            value = int(read)
        if value < minimum or (maximum is not None and value > maximum):
            end = "" if maximum is None else f" and at most {maximum}"
            raise argparse.ArgumentTypeError(f"{text[:40]}: must be at least {minimum}{end}")
        return value

    return convert


def number(
    above: float | None = None, minimum: float | None = None, maximum: float | None = None, length: bool = False
) -> Callable[[str], float]:
    """A finite number, larger than `above`, or from `minimum` up to and with `maximum`; up to 1 also as 90%.

    Args:
        length: mean tokens of sequences: 128k is 131072, 100k reads two ways, 1.000 may be one or a thousand.
    """
    example = maximum if maximum is not None else max(minimum or 0.0, (above or 0.0) + 1.0)
    scales: Mapping[str, float] | None = None if length else {"": 1, "%": 0.01} if maximum == 1 else {"": 1}

    def convert(text: str) -> float:
        value = _read(text, "a number", example, scales, length)
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


def _read(text: str, kind: str, example: float, scales: Mapping[str, float] | None, counted: bool) -> float:
    """The number of an argument; a dollar in front is left out. scales: None is those of a length.

    Raises:
        argparse.ArgumentTypeError: not a number, or one of two readings.
    """
    found = numbers.leading_number(unicodedata.normalize("NFKC", text[:100]).strip().removeprefix("$").strip())
    if found and found[1] in (numbers.PREFIXES if scales is None else scales):
        try:
            value = numbers.number(found[0], whole=counted and not found[1])
        except numbers.TwoReadingsError as two:
            both = " or ".join(reading + found[1] for reading in two.readings)
            raise argparse.ArgumentTypeError(
                f"{text[:40]!r}: must be {kind}, and its sign may part decimals or thousands; write {both}"
            ) from None
        except ValueError:
            pass
        else:
            return value * (_of_a_length(text, value, found[1]) if scales is None else scales[found[1]])
    try:
        return float(text)  # what is not finite has a word of its own
    except ValueError:
        raise _refusal(text, f"must be {kind}", example) from None


def _of_a_length(text: str, value: float, prefix: str) -> float:
    """What the prefix stands for, or a refusal with both readings."""
    try:
        return numbers.of_a_length(value, prefix)
    except numbers.TwoReadingsError as two:
        both = " or ".join(two.readings)
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} reads two ways, {prefix} being metric or binary; write {both}"
        ) from None


def _refusal(text: str, rule: str, example: float) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text[:40]!r}: {rule}; give for example {example:g}")


COUNT = whole(1, 10**9)
LENGTH = whole(1, 10**9, length=True)
SEED = whole(0, MOST_SEED)
