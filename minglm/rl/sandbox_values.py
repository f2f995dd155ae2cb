"""Values that cross the sandbox's wall: plain Python as JSON and back, and when two of them are the same.

Both sides use this file; the child (`sandbox_child.py`) loads it by its path, so it imports nothing of the project.

    >>> decode(encode({"a": (1, {2})})) == {"a": (1, {2})}, same(1, 1.0), same([True], [1]), same((1,), [1])
    (True, True, False, False)
"""

from __future__ import annotations

from typing import Any


class Other:
    """What is no plain value, by its text; equal to another of the same text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Other) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return self.text


def encode(value: Any) -> Any:
    """A value as JSON can write it. What is built on a plain kind (Counter, defaultdict, namedtuple, IntEnum) is
    written as that kind; anything else as its `repr`."""
    if value is None or isinstance(value, (bool, str, int, float)):
        return value
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).decode("latin-1")}
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in value.items()]}
    for name, kinds in (("list", list), ("tuple", tuple), ("set", (set, frozenset))):
        if isinstance(value, kinds):
            return {name: [encode(v) for v in value]}
    return {"other": repr(value)}


def decode(data: Any, hashable: bool = False) -> Any:
    """The value that `encode` wrote; sets as frozen ones where it must be `hashable`.

    Raises:
        TypeError, ValueError, RecursionError, AttributeError: it wrote no such thing.
    """
    if not isinstance(data, (dict, list)):
        return data
    if not (isinstance(data, dict) and len(data) == 1):
        raise ValueError("no encoded value")
    ((name, parts),) = data.items()
    if name == "complex":
        return complex(*parts)
    if name == "bytes":
        return parts.encode("latin-1")
    if name == "dict":
        return {decode(k, True): decode(v) for k, v in parts}
    if name == "list":
        return [decode(v) for v in parts]
    if name == "tuple":
        return tuple(decode(v, hashable) for v in parts)
    if name == "set":
        return (frozenset if hashable else set)(decode(v, True) for v in parts)
    if name == "other" and isinstance(parts, str):
        return Other(parts)
    raise ValueError("no encoded value")


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal as values: numbers across int and float, sets and dicts in any order, nan to nan.

    A bool is no number, and a tuple no list.
    """
    return _comparable(a) == _comparable(b)


def _comparable(value: Any) -> Any:
    """A value whose `==` says what `same` promises."""
    if isinstance(value, bool):
        return Other(f"bool {value}")
    if isinstance(value, (float, complex)) and value != value:
        return Other("nan")
    if isinstance(value, dict):
        return {_comparable(k): _comparable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_comparable(v) for v in value]
    if isinstance(value, tuple):
        return tuple(_comparable(v) for v in value)
    if isinstance(value, (set, frozenset)):
        return frozenset(_comparable(v) for v in value)
    if value is None or isinstance(value, (str, int, float, complex, bytes, bytearray, Other)):
        return value
    return Other(repr(value))
