"""A figure of an answer's row with its 90% interval, in words: '23.6 (19.1–32)'."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sim.base.units import show


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


def dollars(value: float) -> str:
    """An amount of money, three digits: '$232M'."""
    return show(float(number(value)), "money")


def price(value: float) -> str:
    """Dollars of a chip-hour: '$2.95'."""
    return f"${value:.2f}"


def days(count: float, digits: int = 3) -> str:
    """Days in words, to so many digits; hours below two."""
    return f"{count:.{digits}g} days" if count >= 2 else f"{count * 24:.3g} hours"


def with_interval(row: Mapping[str, Any], key: str, words: Callable[[float], str] = number) -> str:
    """The row's figure, and in brackets where 90% of its draws (`row["intervals"]`) lie.

    >>> with_interval({"days": 12.0, "intervals": {"days": {"p5": 10.0, "p95": 15.25}}}, "days")
    '12 (10–15.2)'
    """
    span = row.get("intervals", {}).get(key)
    return words(row[key]) + (f" ({words(span['p5'])}–{words(span['p95'])})" if span else "")
