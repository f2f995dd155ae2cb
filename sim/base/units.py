"""Human units, read once at the edge: '200 Gbps', '64 GiB', '3.35 TB/s', '90 min', '$2/h' become SI floats.

Each quantity has a dimension; a text with a unit of another dimension is refused with the units that would fit. A bare
number is taken as SI (bytes, bytes/s, FLOP/s, seconds, watts, US dollars), and the docs say so.

    >>> parse("200 Gbps", "bytes_per_s"), parse("64 GiB", "bytes"), parse("90 min", "time")
    (25000000000.0, 68719476736.0, 5400.0)
"""

from __future__ import annotations

import math
import re
import unicodedata

from minglm.errors import InputError, nearest
from minglm.numbers import PREFIXES, TwoReadingsError, leading_number, number, of_a_length

RMB_PER_USD = 7.2  # the rate that the collected prices were converted at; a constant, not a quote
DAY_S = 86400.0
LARGEST = 1e30  # no quantity of a cluster is larger; what is, is a typing error

_BINARY = {"": 1.0, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_COUNT = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12} | {
    p: f for p, f in _BINARY.items() if p
}
_YEAR_H = 8760.0
_TIME = {
    unit: seconds
    for units, seconds in {
        "ns": 1e-9,
        "us μs": 1e-6,
        "ms": 1e-3,
        "s sec secs second seconds": 1.0,
        "min mins minute minutes": 60.0,
        "h hr hrs hour hours": 3600.0,
        "d day days": DAY_S,
        "week weeks": 7 * DAY_S,
        "month months": _YEAR_H / 12 * 3600.0,
        "year years": _YEAR_H * 3600.0,
    }.items()
    for unit in units.split()
}
_MONEY = {"$": 1.0, "USD": 1.0, "RMB": 1 / RMB_PER_USD, "CNY": 1 / RMB_PER_USD, "¥": 1 / RMB_PER_USD}
_SCALES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9}


def _units() -> dict[str, dict[str, float]]:
    size = {p + "B": f for p, f in _DECIMAL.items()} | {p + "B": f for p, f in _BINARY.items()}
    rate = {u + "/s": f for u, f in size.items()}
    for prefix, factor in _DECIMAL.items():
        rate[prefix + "Bps"] = factor
        rate[prefix + "bps"] = rate[prefix + "bit/s"] = rate[prefix + "b/s"] = factor / 8
    flops = {
        p + u: f for p, f in _DECIMAL.items() for u in ("FLOPS", "FLOPs", "FLOP/s", "Flops", "flops", "flop/s", "OPS")
    }
    money = {m + (" " + s if s else ""): f * g for m, f in _MONEY.items() for s, g in _SCALES.items()}
    counted = _COUNT | {p + " tokens": f for p, f in _COUNT.items()} | {"tokens": 1.0}
    return {
        "bytes": size,
        "bytes_per_s": rate,
        "flops": flops,
        "time": dict(_TIME),
        "power": {p + "W": f for p, f in {"m": 1e-3, **_DECIMAL}.items()},
        "energy": {p + "J": f for p, f in _DECIMAL.items()} | {p + "Wh": 3600 * f for p, f in _DECIMAL.items()},
        "money": money,
        "money_per_hour": {m + "/" + h: f for m, f in _MONEY.items() for h in ("h", "hour")}
        | {m + "/chip-hour": f for m, f in _MONEY.items()},
        "money_per_kwh": {m + per: f / kwh for m, f in _MONEY.items() for per, kwh in (("/kWh", 1.0), ("/MWh", 1e3))},
        "carbon_per_kwh": {
            mass + carbon + "/" + energy: m / e
            for mass, m in {"kg": 1.0, "g": 1e-3, "t": 1e3}.items()
            for carbon in ("", "CO2", "CO2e", "CO2eq")
            for energy, e in {"kWh": 1.0, "MWh": 1e3}.items()
        },
        "per_hour": {
            "/h": 1.0,
            "/hour": 1.0,
            "/d": 1 / 24,
            "/day": 1 / 24,
            "/month": 12 / _YEAR_H,
            "/year": 1 / _YEAR_H,
        },
        "ratio": {"": 1.0, "%": 0.01},
        "count": counted,
        "length": {unit: f for unit, f in counted.items() if unit.removesuffix("tokens").strip() in PREFIXES},
    }


UNITS = _units()
SI = {
    "bytes": "B",
    "bytes_per_s": "B/s",
    "flops": "FLOP/s",
    "time": "s",
    "power": "W",
    "energy": "J",
    "money": "USD",
    "money_per_hour": "USD/h",
    "money_per_kwh": "USD/kWh",
    "carbon_per_kwh": "kg/kWh",
    "per_hour": "1/h",
    "ratio": "1",
    "count": "1",
    "length": "1",
}
# Quantities that are whole, so that a comma before three digits can only part thousands.
_WHOLE = ("count", "length", "bytes", "money")


def parse(raw: object, dimension: str, name: str = "value", *, low: float | None = 0.0, high: float = LARGEST) -> float:
    """`given` (a number, or a text with a unit) in SI units of `dimension`, within [low, high].

    Raises:
        InputError: not a number, not finite, the wrong unit, or out of range.
    """
    known = UNITS[dimension]
    if isinstance(raw, bool) or raw is None:
        raise InputError(f"{name}: {raw!r} is not a quantity; give a number with a unit such as {_example(dimension)}")
    if isinstance(raw, (int, float)):
        return _in_range(raw, name, low, high, raw)
    text = unicodedata.normalize("NFKC", str(raw)).strip()  # full-width digits, either micro sign, narrow spaces
    if len(text) > 60:
        raise InputError(
            f"{name}: a quantity of {len(text)} characters; give a number with a unit such as {_example(dimension)}"
        )
    split = _number_and_unit(text, dimension)
    if split is None:
        raise InputError(f"{name}: {raw!r} is not a quantity; give a number with a unit such as {_example(dimension)}")
    digits, unit = split
    unit = _canonical(unit, known)
    if unit and unit not in known:
        raise InputError(f"{name}: {raw!r}: {_unknown(unit, dimension)}; give for example {_example(dimension)}")
    try:
        value = number(digits, whole=dimension in _WHOLE and unit in ("", *_MONEY))
    except TwoReadingsError as two:
        shown = " or ".join(f"{reading}{' ' if unit else ''}{unit}" for reading in dict.fromkeys(two.readings))
        sign = "comma" if "," in digits else "point"
        raise InputError(f"{name}: {raw!r} has a {sign} that may part decimals or thousands; write {shown}") from None
    except ValueError:
        raise InputError(
            f"{name}: {raw!r} is not a quantity; give a number with a unit such as {_example(dimension)}"
        ) from None
    if dimension == "length":
        return _in_range(_length(value, unit, f"{name}: {raw!r}"), name, low, high, raw)
    return _in_range(value * known.get(unit, 1.0), name, low, high, raw)


def _length(value: float, unit: str, given: str) -> float:
    """Tokens of a sequence or a width; `given` begins the refusal of what reads two ways."""
    try:
        return value * of_a_length(value, unit.removesuffix("tokens").strip())
    except TwoReadingsError as two:
        metric, binary = two.readings
        sign = unit[:1]
        raise InputError(f"{given} reads two ways, {sign} being metric or binary; write {metric} or {binary}") from None


# Other words for a unit, where they can mean nothing else.
_WORDS = {"thousand": "k", "million": "M", "billion": "B", "trillion": "T", "bn": "B"}
_PER_HOUR = re.compile(r"/(?:[A-Za-z]{3,11}-)?(?:h|hr|hour)$")  # of a chip, whatever it is called: /GPU-hour


def _canonical(unit: str, known: dict[str, float]) -> str:
    """A unit as the tables write it, where it is one of them in other words; else as it was."""
    if unit in known:
        return unit
    words = " ".join(_WORDS.get(word, word) for word in unit.split())
    close = words.replace("per ", "/").replace(" ", "")
    for spelling in (words, close, _PER_HOUR.sub("/h", close)):
        if spelling in known:
            return spelling
    return unit


def _unknown(unit: str, dimension: str) -> str:
    """Why a unit is not one of its dimension. A hint differs from it in capitals only, or begins alike."""
    other = next((d for d, table in UNITS.items() if unit in table), None)
    if other:
        return f"'{unit}' measures {other.replace('_', ' ')}, not {dimension.replace('_', ' ')}"
    known = UNITS[dimension]
    same = {known[k]: k for k in reversed(known) if k.casefold() == unit.casefold()}  # one spelling a size
    if same:
        return f"'{unit}' is not a known unit (did you mean {' or '.join(map(repr, same.values()))}?)"
    hint = nearest(unit, [k for k in known if k[:1] == unit[:1]])
    coins = f"; money is in {', '.join(_MONEY)}" if dimension.startswith("money") and not hint else ""
    return f"'{unit}' is not a known unit{hint}{coins}"


def _number_and_unit(text: str, dimension: str) -> tuple[str, str] | None:
    """('$3.5 M', 'money') → ('3.5', '$ M'): the digits, and the unit as the tables write it;
    None where there is no number.
    """
    money = dimension.startswith("money")
    prefix = ""
    if money:
        for symbol in sorted(_MONEY, key=len, reverse=True):
            if text.startswith(symbol):
                prefix, text = symbol, text[len(symbol) :].strip()
                break
    found = leading_number(text)
    if not found:
        return None
    digits, unit = found
    if prefix:
        unit = prefix + (unit if unit.startswith("/") else (" " + unit if unit else ""))
    elif money and unit:
        head = re.match(r"^([kKMB]?)\s*(\D+)$", unit)
        if head and head.group(1) and head.group(2) in _MONEY:
            unit = head.group(2) + " " + head.group(1)
    return digits, unit


def _in_range(value: float, name: str, low: float | None, high: float, raw: object) -> float:
    shown = repr(raw) if len(repr(raw)) <= 40 else repr(raw)[:37] + "…"
    try:
        value = float(value)
    except OverflowError:
        raise InputError(f"{name}: {shown} is larger than {high:g}; check the number") from None
    if not math.isfinite(value):
        raise InputError(f"{name}: {shown} is not a finite number; give a finite one")
    if low is not None and value < low:
        raise InputError(f"{name}: {shown} is below {low:g}; give {low:g} or more")
    if value > high:
        raise InputError(f"{name}: {shown} is larger than {high:g}; check the number")
    return value


def _example(dimension: str) -> str:
    return {
        "bytes": "'64 GiB'",
        "bytes_per_s": "'200 Gbps' or '3.35 TB/s'",
        "flops": "'354 TFLOPS'",
        "time": "'90 min'",
        "power": "'350 W'",
        "energy": "'1 GWh'",
        "money": "'$16000'",
        "money_per_hour": "'$2/h'",
        "money_per_kwh": "'$0.08/kWh'",
        "carbon_per_kwh": "0.385 or '385 g/kWh'",
        "per_hour": "'0.01/day'",
        "ratio": "'85%' or 0.85",
        "count": "'16M' or 100000",
        "length": "8192 or '8Ki'",
    }[dimension]


def whole(raw: object, name: str, low: int = 1, high: int = 10**15, dimension: str = "count") -> int:
    """A whole number in [low, high]; '16M', '1e6' and '100_000' are understood, and in a length '8Ki'."""
    value = parse(raw, dimension, name, low=None)
    if value != int(value):
        raise InputError(f"{name}: {raw!r} is not a whole number; give for example {max(low, int(value))}")
    if value < low:
        raise InputError(f"{name}: {raw!r} is below {low}; give {low} or more")
    if value > high:
        raise InputError(f"{name}: {raw!r} is larger than {high:,}; check the number")
    return int(value)


def show(value: float, dimension: str) -> str:
    """A short human form: `show(2.5e10, 'bytes_per_s')` is '25 GB/s'."""
    if dimension == "bytes":
        for prefix in ("Pi", "Ti", "Gi", "Mi", "Ki"):
            if abs(value) >= _BINARY[prefix]:
                return f"{value / _BINARY[prefix]:.4g} {prefix}B"
        return f"{value:.4g} B"
    if dimension == "time":
        for unit, factor in (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
            if abs(value) >= factor:
                return f"{value / factor:.4g} {unit}"
        return f"{value * 1e6:.4g} µs"
    suffix = {"bytes_per_s": "B/s", "flops": "FLOPS", "power": "W", "energy": "J", "money": "", "count": ""}.get(
        dimension
    )
    if suffix is None:
        return f"{value:.4g} {SI[dimension]}"
    if dimension == "count":
        scale = [("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)]
    elif dimension == "money":
        scale = [("B", 1e9), ("M", 1e6), ("K", 1e3)]
    else:
        scale = [("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("K", 1e3)]
    lead = "$" if dimension == "money" else ""
    for prefix, factor in scale:
        if abs(value) >= factor:
            return f"{lead}{value / factor:.4g}{'' if dimension in ('money', 'count') else ' '}{prefix}{suffix}"
    return f"{lead}{_digits(value, dimension)}{(' ' + suffix) if suffix else ''}"


def _digits(value: float, dimension: str) -> str:
    """Four digits; no three decimals where nothing follows: they would read as thousands where a point parts those."""
    text = f"{value:.4g}"
    parts = dimension in ("money", "count") and abs(value) >= 1 and text[-4:-3] == "."
    return f"{value:.2f}" if parts else text


def format_value(value: float, unit: str) -> str:
    """A figure in human units; rates per hour as so many million hours between events."""
    if unit == "1/h":
        return f"one in {1 / value:,.0f} h" if value else "never"
    kinds = {"B": "bytes", "B/s": "bytes_per_s", "FLOP/s": "flops", "s": "time", "W": "power", "USD": "money"}
    return show(value, kinds[unit]) if unit in kinds else f"{value:.4g}" + ("" if unit == "1" else f" {unit}")
