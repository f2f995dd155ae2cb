"""Numbers as people of any country write them: what reads one way is read, what reads two ways is refused with both.

>>> number("1 234,5"), number("1.000.000"), number("1,024", whole=True)
(1234.5, 1000000.0, 1024.0)
"""

from __future__ import annotations

import re

_PARTED = r"[+-]?[1-9]\d{0,2}(?:%s\d{3})+"  # thousands by a separator: 1'000'000
PREFIXES = {"": (1, 1), "k": (1000, 1024), "K": (1000, 1024), "M": (10**6, 1 << 20)}  # metric, binary
PREFIXES |= {prefix: (factor, factor) for prefix, factor in (("Ki", 1 << 10), ("Mi", 1 << 20))}
_POWERS = {2.0**n for n in range(11)}
_SIGNS_OF_THOUSANDS = (" ", "'", "’")  # these never part decimals; narrow and fixed spaces are taken as spaces
# a sign, digits with what may part them, an exponent; then what follows
_NUMBER = re.compile(r"^([+-]?(?:\d[\d_,.]*(?:[ '’]\d[\d_,.]*)*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*)$", re.ASCII)


class TwoReadingsError(ValueError):
    """A number that reads two ways; `readings` are those, each of which is read one way."""

    def __init__(self, readings: list[str]):
        super().__init__(" or ".join(readings))
        self.readings = readings


def of_a_length(reading: float, prefix: str) -> float:
    """What a prefix stands for in a length (tokens of a sequence) or in a width of a model: 8k is 8,192 and 1M is
    1,048,576, as models have them: powers of two are counted in 1,024s.

    Raises:
        TwoReadingsError: k, K or M after another number: 200K has been 200,000, 202,752 and 204,800.
    """
    metric, binary = PREFIXES[prefix]
    if metric == binary or reading in _POWERS:
        return binary
    raise TwoReadingsError([f"{reading * factor:.15g}" for factor in (metric, binary)])


def leading_number(text: str) -> tuple[str, str] | None:
    """('80', 'GB') of '80 GB': the number as written and what follows; None where no number stands in front."""
    found = _NUMBER.match(text)
    return (found[1], found[2].strip()) if found else None


def number(digits: str, whole: bool = False) -> float:
    """The number that `digits` write.

    A point parts decimals and a comma after it, spaces or apostrophes part thousands; where both signs stand, the last
    one parts decimals; a sign that stands twice parts thousands. A lone comma is refused with both readings: '5,57' is
    5.57 in half of the world's spreadsheets. So is a lone point before three digits where `whole`.

    Args:
        whole: a quantity without fractions, such as chips: a comma before three digits can only part thousands.

    Raises:
        ValueError: not a number.
        TwoReadingsError: two readings.
    """
    plain, exponent = re.fullmatch(r"(.*?)((?:[eE][+-]?\d+)?)", digits.replace("_", "")).groups()  # type: ignore[union-attr]
    for sign in _SIGNS_OF_THOUSANDS:
        if sign in plain:
            if not re.fullmatch(_PARTED % sign + r"(?:[.,]\d+)?", plain):
                raise ValueError(digits)
            return float(plain.replace(sign, "").replace(",", ".") + exponent)
    if plain.endswith(","):
        raise ValueError(digits)
    commas, points = plain.count(","), plain.count(".")
    if commas and points:
        mark = max(",.", key=plain.rfind)
        return float(_without(plain, ",.".replace(mark, ""), mark) + exponent)
    if commas + points > 1:
        return float(_without(plain, "," if commas else ".", "") + exponent)
    three = re.fullmatch(_PARTED % "[.,]", plain) is not None
    if commas and not (whole and three):
        if re.fullmatch(r"[+-]?0,\d+", plain):
            return float(plain.replace(",", ".") + exponent)
        raise TwoReadingsError([plain.replace(",", ".") + exponent, plain.replace(",", "") + exponent])
    if points and whole and three and not exponent:
        decimal = plain.rstrip("0").rstrip(".")
        raise TwoReadingsError([decimal + "0" if "." in decimal[-4:-3] else decimal, plain.replace(".", "")])
    return float(plain.replace(",", "") + exponent)


def _without(plain: str, thousands: str, mark: str) -> str:
    """`plain` without its signs of thousands and with a point for its decimal mark.

    Raises:
        ValueError: the signs do not part groups of three.
    """
    tail = rf"(?:\{mark}\d*)?" if mark else ""
    if not re.fullmatch(_PARTED % rf"\{thousands}" + tail, plain):
        raise ValueError(plain)
    plain = plain.replace(thousands, "")
    return plain.replace(mark, ".") if mark else plain
