"""A figure with its range, unit, source and confidence: how every published quantity is kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from minglm.errors import InputError, nearest
from sim.base.units import SI, parse

CONFIDENCE = ("measured", "published", "vendor", "third-party", "assumed")


@dataclass(frozen=True)
class Figure:
    """One fact: `value` within [`low`, `high`] in the SI `unit`, who says so, and how strong that is."""

    value: float
    low: float
    high: float
    unit: str
    source: str
    confidence: str

    def __float__(self) -> float:
        return self.value

    @property
    def certain(self) -> bool:
        """Whether the range is a point."""
        return self.low == self.high


def figure(raw: object, dimension: str, name: str, *, positive: bool = True) -> Figure:
    """A `Figure` from '312 TFLOPS', a plain SI number, or a mapping of value, low, high, source, confidence."""
    if not isinstance(raw, Mapping):
        value = parse(raw, dimension, name)
        result = Figure(value, value, value, SI[dimension], "given without a source", "assumed")
    else:
        known = ("value", "low", "high", "source", "confidence")
        known_keys(raw, known, name)
        if "value" not in raw:
            raise InputError(f"{name}: has no 'value'; give value, and low, high, source, confidence where known")
        value = parse(raw["value"], dimension, name)
        low = parse(raw.get("low", raw["value"]), dimension, name + ".low")
        high = parse(raw.get("high", raw["value"]), dimension, name + ".high")
        if not low <= value <= high:
            raise InputError(f"{name}: value {value:g} is outside its own range [{low:g}, {high:g}]; widen the range")
        confidence = raw.get("confidence", "assumed")
        if confidence not in CONFIDENCE:
            raise InputError(
                f"{name}.confidence {confidence!r}: not one of "
                f"{', '.join(CONFIDENCE)}{nearest(str(confidence), CONFIDENCE)}"
            )
        result = Figure(value, low, high, SI[dimension], str(raw.get("source", "given without a source")), confidence)
    if positive and result.value <= 0:
        raise InputError(
            f"{name}: {raw if not isinstance(raw, Mapping) else raw['value']!r} must be more than 0; give a "
            "positive value"
        )
    return result


def known_keys(raw: Mapping[str, object], known: Collection[str], name: str) -> None:
    """Refuse a key that is not known, with the nearest that is."""
    for key in raw:
        if key not in known:
            raise InputError(
                f"{name}: unknown key {key!r}{nearest(str(key), known)}; known keys: {', '.join(sorted(known))}"
            )
